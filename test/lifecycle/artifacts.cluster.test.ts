import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { eventsOf } from "../agent/agent.ts";
import { profileReady } from "../cluster/bulkhead.ts";
import { podOf } from "../pods/kube.ts";
import { inCache } from "../tools/cache.ts";
import { run } from "../tools/run.ts";
import { eventually, killProgram, type Life, openLife, profileOf } from "./life.ts";

/** A wall whose programs come as an image of their own, through its whole life (docs/artifacts.md). */

/** Fetching and unpacking gVisor takes a second of a quiet machine, and most of a minute of one that others keep busy. */
const slow = 240;

let life: Life;
let scratch: string;
let key: string;
let started: number;
const directory = "/opt/bulkhead/artifacts";

const cosign = (...argv: string[]): Promise<string> =>
  run([inCache("bin", "cosign"), ...argv], { cwd: scratch, env: { COSIGN_PASSWORD: "x", HOME: scratch } });

/** gVisor as an artifact, as `./dev artifact build` makes one; each version is another digest. */
const artifact = async (name: string, version: string, { signed } = { signed: true }) => {
  const tree = join(scratch, `${name}-${version}`);
  await mkdir(join(tree, "bin"), { recursive: true });
  await mkdir(join(tree, "share"));
  // What is refused before it is fetched may as well be empty.
  for (const program of signed ? ["runsc", "containerd-shim-runsc-v1"] : [])
    await copyFile(inCache("bin", program), join(tree, "bin", program));
  await writeFile(join(tree, "share/version"), version);
  const program = join(import.meta.dirname, "../../images/artifact.ts");
  const flags = ["--registry", life.cluster.registry, "--name", `artifacts/${name}`, "--insecure"];
  const image = (await run([process.execPath, program, tree, ...flags])).trim();
  const quiet = ["--yes", "--tlog-upload=false", "--use-signing-config=false", "--allow-http-registry"];
  if (signed) await cosign("sign", ...quiet, "--key", "cosign.key", image);
  return { image, hex: image.slice(-64) };
};
const wall = (name: string, image: string, rest: object = {}) =>
  life.apply(
    profileOf(
      name,
      { gvisor: { platform: "systrap" } },
      {
        artifact: { image, verify: { cosign: { publicKeys: [key] } }, ...rest },
        probe: { interval: "5s" },
      },
    ),
  );
const there = async (): Promise<string[]> =>
  (await life.node.try(["ls", directory])).stdout.split("\n").filter((name) => name !== "");
const told = (reason: string, ...words: string[]): Promise<void> =>
  eventually(async () => {
    const events = await eventsOf(life.cluster, life.node.name);
    const notes = events.filter((event) => event.reason === reason && event.at >= started);
    expect(
      notes.some(({ note }) => words.every((word) => note.includes(word))),
      JSON.stringify(notes),
    ).toBe(true);
  });
const intact = async () => {
  type Node = { status?: { conditions?: { type: string; status: string; message: string }[] } };
  const { status } = await life.get<Node>("nrt", life.node.name);
  return status?.conditions?.find(({ type }) => type === "ArtifactsIntact");
};
/** Shims of running pods that were started from an artifact. */
const shimsOf = async (hex: string): Promise<number> => {
  const script = `for p in /proc/[0-9]*; do readlink $p/exe; done 2>/dev/null | grep -c ${directory}/${hex}/root/bin/containerd-shim; true`;
  return Number(await life.node.exec(["sh", "-c", script]));
};

let one: { image: string; hex: string };
let two: { image: string; hex: string };

beforeAll(async () => {
  started = Date.now() - 1000;
  scratch = await mkdtemp(join(tmpdir(), "bh-artifacts-"));
  life = await openLife("artifacts");
  await life.install();
  await cosign("generate-key-pair");
  key = await readFile(join(scratch, "cosign.pub"), "utf8");
  [one, two] = [await artifact("gvisor", "1"), await artifact("gvisor", "2")];
});
afterAll(async () => {
  for (const name of ["walled", "unsigned", "hurried"])
    await life?.cluster.kubectl(["delete", "rtp", name, "--ignore-not-found", "--wait=false"]);
  await life?.[Symbol.asyncDispose]();
  await rm(scratch, { recursive: true, force: true });
});

describe("A profile whose programs come as an artifact", { timeout: 2.5 * slow * 1000 }, () => {
  test("is fetched, verified, unpacked by its digest, and serves pods", async () => {
    await wall("walled", one.image, { repair: true });
    await profileReady(life.cluster, "walled", undefined, slow);
    await told("ArtifactFetched", one.image);
    expect(await life.node.exec(["cat", "/etc/bulkhead/handlers.d/walled.yaml"])).toContain(
      `${directory}/${one.hex}/root/bin/`,
    );
    await life.ns.run(life.counter("walled-old", "walled"));
    expect(await shimsOf(one.hex)).toBeGreaterThan(0);
    expect((await intact())?.status).toBe("True");
  });

  test("gets another version beside the first, which a running pod keeps until it ends", async () => {
    const before = await life.lives("walled-old");
    await wall("walled", two.image, { repair: true });
    await profileReady(life.cluster, "walled", undefined, slow);
    await life.ns.run(podOf("walled-new", "walled", life.image));
    expect(await shimsOf(two.hex)).toBeGreaterThan(0);
    expect((await there()).sort()).toEqual([one.hex, two.hex].sort());
    await life.counts("walled-old");
    expect(await life.ns.exec("walled-old", "echo", "alive")).toBe("alive\n");
    expect(await life.lives("walled-old")).toEqual(before);
    await life.ns.remove("walled-old");
    await eventually(async () => expect(await there()).toEqual([two.hex]));
    await told("ArtifactRemoved", one.image);
    expect(await life.node.exec(["sh", "-c", "ls /etc/bulkhead/runsc | grep -c walled"])).toBe("1\n");
  });

  test("whose file somebody changes is told and put right, and its pods do not notice", async () => {
    const before = await life.lives("walled-new");
    const runsc = `${directory}/${two.hex}/root/bin/runsc`;
    const digest = await life.node.exec(["sha256sum", runsc]);
    await life.node.exec([
      "sh",
      "-c",
      `echo broken >${runsc}.x && chmod 755 ${runsc}.x && mv ${runsc}.x ${runsc}`,
    ]);
    await eventually(async () => expect(await life.node.exec(["sha256sum", runsc])).toBe(digest), slow);
    await told("ArtifactChanged", two.image, "bin/runsc");
    await told("ArtifactRepaired", two.image);
    await profileReady(life.cluster, "walled", undefined, slow);
    expect(await there()).toEqual([two.hex]);
    expect((await intact())?.status).toBe("True");
    expect(await life.ns.exec("walled-new", "echo", "alive")).toBe("alive\n");
    expect(await life.lives("walled-new")).toEqual(before);
  });

  test("that is not to be put right gets no new pods until its files are what they were", async () => {
    await wall("walled", two.image);
    await profileReady(life.cluster, "walled", undefined, slow);
    const strange = `${directory}/${two.hex}/root/bin/strange`;
    await life.node.exec(["touch", strange]);
    await eventually(async () => {
      const found = await life.nodeProfile("walled");
      expect(found).toMatchObject({ phase: "Failed", reason: "ArtifactChanged" });
      expect(found?.message).toContain("bin/strange");
    });
    expect(await intact()).toMatchObject({
      status: "False",
      message: expect.stringContaining("bin/strange"),
    });
    await life.node.exec(["rm", strange]);
    await profileReady(life.cluster, "walled", undefined, slow);
    expect(await life.ns.exec("walled-new", "echo", "alive")).toBe("alive\n");
  });

  test("that is not signed is refused, and nothing of it comes to the node", async () => {
    const { image, hex } = await artifact("unsigned", "1", { signed: false });
    await wall("unsigned", image);
    await eventually(async () =>
      expect(await life.nodeProfile("unsigned")).toMatchObject({
        phase: "Failed",
        reason: "ArtifactFailed",
        message: expect.stringContaining("the image is not signed"),
      }),
    );
    expect(await there()).toEqual([two.hex]);
    await life.cluster.kubectl(["delete", "rtp", "unsigned", "--timeout=60s"]);
    expect(hex).not.toBe(two.hex);
  });

  test("comes whole or not at all when the installer is killed in between", async () => {
    const { image, hex } = await artifact("hurried", "1");
    await wall("hurried", image);
    for (let kills = 0; kills < 3; kills++) {
      await eventually(async () => expect(await there()).toContainEqual(expect.stringContaining(hex)));
      await killProgram(life.cluster, "installer");
    }
    await profileReady(life.cluster, "hurried", undefined, slow);
    expect((await there()).sort()).toEqual([hex, two.hex].sort());
  });

  test("leaves nothing when it goes", async () => {
    await life.ns.remove("walled-new");
    for (const name of ["walled", "hurried"])
      await life.cluster.kubectl(["delete", "rtp", name, "--timeout=90s"]);
    await eventually(async () => expect(await there()).toEqual([]));
  });
});
