import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { appendFile, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { imageOf, mediaTypes } from "@bulkhead/test/images/image.ts";
import { blobOf, digestOf, pushBlob, pushManifest } from "@bulkhead/test/images/push.ts";
import { type RunningRegistry, startRegistry } from "@bulkhead/test/images/registry.ts";
import { type Entry, tarOf } from "@bulkhead/test/images/tar.ts";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { BundleCheck } from "../bundle.ts";
import { artifactDirectory, installed } from "../files.ts";
import { execute, type Host } from "../host.ts";
import { Ownership } from "../ownership.ts";
import { Artifacts } from "./artifacts.ts";

/* The host is a fake: a folder stands for its root, and the runtime's program is run from its source. */
const fakeHost = (root: string): Host => ({
  at: (path) => join(root, path),
  real: (path) => path,
  fetch: () => Promise.reject(new Error("nobody asks")),
  serveLayout: () => Promise.reject(new Error("nobody pulls")),
  run: ([, , ...argv], options) => {
    const main = join(import.meta.dirname, "../../../../runtime/src/main.ts");
    const inside = argv.map((word) => (word.startsWith(paths.opt) ? join(root, word) : word));
    return execute([process.execPath, main, ...inside], options);
  },
});

const never = new AbortController().signal;
type Wanted = Pick<DesiredProfile, "artifact">;
let scratch: string;
let registry: RunningRegistry;
let root: string;
let told: string[];
let works: string[];
let condition: { holds: boolean; message: string } | undefined;

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "bh-artifacts-"));
  registry = await startRegistry({ dir: join(scratch, "registry") });
});
afterAll(async () => {
  await registry.stop();
  await rm(scratch, { recursive: true, force: true });
});
beforeEach(async () => {
  root = await mkdtemp(join(scratch, "root-"));
  [told, works, condition] = [[], [], undefined];
});
afterEach(() => rm(root, { recursive: true, force: true }));

/** Pushes an artifact; says its reference by digest. */
const pushed = async (name: string, ...entries: Entry[]): Promise<string> => {
  const tar = tarOf(entries);
  const layer = { diffId: digestOf(tar), blob: blobOf(mediaTypes.gzip, gzipSync(tar)) };
  const { config, manifest } = imageOf([layer]);
  const target = { url: registry.url, repository: name };
  for (const blob of [layer.blob, config]) await pushBlob(target, blob);
  await pushManifest(target, "1", manifest);
  return `${registry.host}/${name}@${manifest.digest}`;
};
const program = (data: string): Entry => ({ type: "file", path: "bin/runsc", data, mode: 0o755 });
const doc: Entry = { type: "file", path: "share/doc", data: "text" };

/** The artifacts of the fake host as an installer that starts now knows them. */
const open = async (standsForAll?: string) => {
  const host = fakeHost(root);
  await mkdir(join(root, "opt"), { recursive: true });
  const ownership = new Ownership(host, installed.record);
  await ownership.load();
  let woken = Promise.withResolvers<void>();
  const artifacts = new Artifacts({
    host,
    ownership,
    bundle: join(root, "bundle"),
    manifest: { version: "1", files: [] },
    check: new BundleCheck(),
    metrics: { artifact: { changed: () => {}, ended: (work, result) => works.push(`${work} ${result}`) } },
    log: pino({ level: "silent" }),
    registry: standsForAll,
    note: (reason, message) => told.push(`${reason}: ${message}`),
    condition: (holds, _reason, message) => {
      condition = { holds, message };
    },
    wake: () => woken.resolve(),
  });
  /** Passes of the controller, until nothing is on its way any more. */
  const settle = async (...profiles: Wanted[]) => {
    for (;;) {
      woken = Promise.withResolvers();
      await artifacts.look(profiles, never);
      const states = profiles.map((profile) => artifacts.stateOf(profile).is);
      if (states.every((is) => is === "there" || is === "failed")) return states;
      await Promise.race([woken.promise, sleep(20_000, undefined, { ref: false })]);
    }
  };
  return { artifacts, ownership, settle, woken: () => woken.promise };
};
const at = (image: string, path = ""): string => join(root, artifactDirectory(image), "root", path);
const names = async (): Promise<string[]> => (await readdir(join(root, installed.artifacts))).sort();

describe("The artifacts of a node", () => {
  test("come once for all profiles, and are known by the next installer", async () => {
    const image = await pushed("one", program("1"));
    const profile = { artifact: { image } };
    const first = await open();
    await first.artifacts.look([profile, profile], never);
    expect(first.artifacts.stateOf(profile)).toEqual({ is: "on-its-way" });
    expect(await first.settle(profile, profile)).toEqual(["there", "there"]);
    expect(await readFile(at(image, "bin/runsc"), "utf8")).toBe("1");
    expect(works).toEqual(["fetch done"]);
    expect(await names()).toEqual([image.slice(-64)]);
    const second = await open();
    await second.artifacts.look([profile], never);
    expect(second.artifacts.stateOf(profile)).toEqual({ is: "there" });
    expect(works).toEqual(["fetch done"]);
    expect(second.artifacts.stateOf({ artifact: { bundled: true } })).toEqual({ is: "there" });
  });

  test("that were left half-way by a kill come anew", async () => {
    const image = await pushed("killed", program("whole"));
    const { ownership } = await open();
    await ownership.tree(installed.artifacts);
    const hex = image.slice(-64);
    const half = { image, list: null, policies: [], repair: false };
    await ownership.update(() => ({ artifacts: { [hex]: half } }));
    await mkdir(at(image, "bin"), { recursive: true });
    await writeFile(at(image, "bin/half"), "half");
    const next = await open();
    expect(await next.settle({ artifact: { image } })).toEqual(["there"]);
    expect(await readdir(at(image, "bin"))).toEqual(["runsc"]);
  });

  test("that cannot be fetched say why, and are tried again when somebody changes what is wanted", async () => {
    const image = `${registry.host}/late@sha256:${"0".repeat(64)}`;
    const { artifacts, settle } = await open();
    expect(await settle({ artifact: { image } })).toEqual(["failed"]);
    expect(artifacts.stateOf({ artifact: { image } })).toMatchObject({
      message: expect.stringMatching(/^Cannot fetch artifact .* 404/),
    });
    await artifacts.look([{ artifact: { image } }], never);
    expect(works).toEqual(["fetch failed"]);
    artifacts.hurry();
    expect(await settle({ artifact: { image } })).toEqual(["failed"]);
    expect(works).toEqual(["fetch failed", "fetch failed"]);
  });

  test("come from the one registry that stands for all, where there is one", async () => {
    const image = (await pushed("mirror/one", program("1"))).replace(/^.*mirror/, "nowhere.invalid");
    const { settle } = await open(`${registry.host}/mirror`);
    expect(await settle({ artifact: { image } })).toEqual(["there"]);
    expect(await readFile(at(image, "bin/runsc"), "utf8")).toBe("1");
  });

  test("that nobody wants any more are not fetched to the end, and leave nothing", async () => {
    const image = await pushed("unwanted", program("1"));
    const { artifacts, ownership } = await open();
    await artifacts.look([{ artifact: { image } }], never);
    expect(artifacts.stateOf({ artifact: { image } })).toEqual({ is: "on-its-way" });
    await artifacts.stop();
    await artifacts.look([], never);
    await artifacts.collect([], []);
    expect(await names()).toEqual([]);
    expect(ownership.record.artifacts).toEqual({});
    expect(works).toEqual([]);
  });

  test("are held to a signature policy that comes later, too", async () => {
    const image = await pushed("unsigned", program("1"));
    const { artifacts, settle } = await open();
    const pem =
      "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEQ+Dd4cm1/xhRJEhRjq/dLrRGkQDz\nMYvRm4aHJXJDDMT9SEcNuF16DQNsm/zExU1U4GD7gwXZdWHAwGqv93HJeA==\n-----END PUBLIC KEY-----\n";
    const policy = { cosign: { publicKeys: [pem], identity: "repository" as const } };
    expect(await settle({ artifact: { image } })).toEqual(["there"]);
    const strict = { artifact: { image, verify: policy } };
    expect(await settle({ artifact: { image } }, strict)).toEqual(["there", "failed"]);
    expect(artifacts.stateOf(strict)).toMatchObject({ message: expect.stringContaining("verify artifact") });
    expect(works).toEqual(["fetch done", "verify failed"]);
  });

  const changes: [string, string, (image: string) => Promise<void>][] = [
    ["a file", "bin/runsc", (image) => appendFile(at(image, "bin/runsc"), "x")],
    ["a missing file", "share/doc", (image) => rm(at(image, "share/doc"))],
    ["a file that nobody listed", "bin/more", (image) => writeFile(at(image, "bin/more"), "x")],
    [
      "a link",
      "bin/link",
      async (image) => {
        await rm(at(image, "bin/link"));
        await symlink("/bin/sh", at(image, "bin/link"));
      },
    ],
    ["the list itself", "manifest.json", (image) => appendFile(at(image, "../manifest.json"), " ")],
    ["everything", "manifest.json", (image) => rm(join(at(image), ".."), { recursive: true })],
  ];
  test("tell of every change, and put it right where a profile says so", async () => {
    const link: Entry = { type: "symlink", path: "bin/link", to: "runsc" };
    const image = await pushed("changed", program("1"), doc, link);
    const { artifacts, settle } = await open();
    await settle({ artifact: { image } });
    expect(condition).toMatchObject({ holds: true });
    for (const [what, path, change] of changes) {
      [told, works] = [[], []];
      await change(image);
      await artifacts.look([{ artifact: { image } }], never);
      expect(artifacts.stateOf({ artifact: { image } }), what).toEqual({
        is: "changed",
        message: `Files of artifact ${image} were changed: ${path}`,
      });
      expect(condition, what).toEqual({ holds: false, message: expect.stringContaining(path) });
      // Told once.
      await artifacts.look([{ artifact: { image } }], never);
      expect(
        told.map((line) => line.split(":")[0]),
        what,
      ).toEqual(["ArtifactChanged"]);
      expect(works, what).toEqual([]);
      expect(await settle({ artifact: { image, repair: true } }), what).toEqual(["there"]);
      expect(works, what).toEqual(["repair done"]);
      expect((await readdir(at(image), { recursive: true })).sort(), what).toEqual(
        ["bin", "bin/link", "bin/runsc", "share", "share/doc"].sort(),
      );
      expect(await readFile(at(image, "bin/link"), "utf8"), what).toBe("1");
      expect(condition, what).toMatchObject({ holds: true });
      expect(await names()).toEqual([image.slice(-64)]);
    }
  });

  test("stay while a profile, a file of ours, a process or a pod's record needs them, and go after that", async () => {
    const [a, b, c, d, e] = await Promise.all(
      ["a", "b", "c", "d", "e"].map((name) => pushed(name, program(name), doc)),
    );
    if (!a || !b || !c || !d || !e) throw new Error("not pushed");
    const { artifacts, ownership, settle } = await open();
    const wants = [a, b, c, d, e].map((image) => ({ artifact: { image } }));
    expect(await settle(...wants)).toEqual(Array(5).fill("there"));
    const sleeper = at(c, "bin/sleep");
    await writeFile(sleeper, await readFile("/bin/sleep"), { mode: 0o755 });
    const process = spawn(sleeper, ["60"], { stdio: "ignore" });
    try {
      await once(process, "spawn");
      const records = join(root, paths.state, "records/pods");
      await mkdir(records, { recursive: true });
      await writeFile(
        join(records, "1.json"),
        JSON.stringify({ handler: { binary: `${artifactDirectory(d)}/root/bin/runsc` } }),
      );
      const text = `binary: ${artifactDirectory(b)}/root/bin/runsc\n`;
      await artifacts.collect([{ artifact: { image: a } }], [text]);
      expect(await names()).toEqual([a, b, c, d].map((image) => image.slice(-64)).sort());
      expect(Object.keys(ownership.record.artifacts ?? {})).toHaveLength(4);
      expect(told.at(-1)).toContain(`Artifact ${e} is gone`);
      await rm(records, { recursive: true });
    } finally {
      process.kill("SIGKILL");
      await once(process, "exit");
    }
    await artifacts.collect([], []);
    expect(await names()).toEqual([]);
    expect(ownership.record.artifacts).toEqual({});
    expect(existsSync(join(root, installed.artifacts))).toBe(true);
  });
});
