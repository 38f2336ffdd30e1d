import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { createDaemon, type Daemon, remains } from "./daemon.ts";

/** A fake: a plugin that passes on what came before it, fails, or hangs, as the file `mode` says for its command. */
const fakePlugin = (modes: string): string => `#!${process.execPath}
const { readFileSync } = require("node:fs");
const command = process.env.CNI_COMMAND;
const config = JSON.parse(readFileSync(0, "utf8"));
const mode = JSON.parse(readFileSync(${JSON.stringify(modes)}, "utf8"))[command];
if (mode === "hang") setInterval(() => {}, 1000);
else if (mode === "fail") {
  console.log(JSON.stringify({ cniVersion: "1.0.0", code: 100, msg: command + " fails by order" }));
  process.exitCode = 1;
} else if (command === "ADD") console.log(JSON.stringify(config.prevResult));
else if (command === "VERSION") console.log(JSON.stringify({ cniVersion: "1.0.0", supportedVersions: ["1.0.0"] }));
`;

let scratch: string;
let daemon: Daemon;
let podFile: string;
const order = (modes: Partial<Record<"ADD" | "DEL", "fail" | "hang">>) =>
  writeFile(join(scratch, "modes.json"), JSON.stringify(modes));

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "bh-cni-failure-"));
  // No image is pulled: a pod of runc needs none.
  daemon = await createDaemon({ registry: "127.0.0.1:1", subnet: 96 });
  const plugin = join(daemon.pluginDir, "fake");
  await writeFile(plugin, fakePlugin(join(scratch, "modes.json")));
  await chmod(plugin, 0o755);
  const list = join(daemon.confDir, "10.conflist");
  const conf = JSON.parse(await readFile(list, "utf8")) as { plugins: unknown[] };
  conf.plugins.push({ type: "fake" });
  await writeFile(list, JSON.stringify(conf));
  podFile = join(scratch, "pod.json");
  await writeFile(
    podFile,
    JSON.stringify({ metadata: { name: "pod", namespace: "test", uid: "uid", attempt: 0 }, linux: {} }),
  );
  await order({});
  await daemon.start();
});
afterAll(async () => {
  await order({});
  await daemon?.[Symbol.asyncDispose]();
  await rm(scratch, { recursive: true, force: true });
});
beforeEach(() => order({}));

const addresses = async (): Promise<string[]> =>
  (await readdir(daemon.addressDir).catch(() => [])).filter((name) => /^\d/.test(name));
const pods = async (...flags: string[]): Promise<string[]> =>
  (await daemon.crictl("pods", "-q", "--no-trunc", ...flags)).split("\n").filter((id) => id !== "");
const nothingLeft = async (): Promise<void> => {
  expect(await pods()).toEqual([]);
  expect(await addresses()).toEqual([]);
  expect(await remains(daemon)).toEqual([]);
};
const runAndRemove = async (): Promise<void> => {
  const pod = (await daemon.crictl("runp", podFile)).trim();
  expect(await addresses()).toHaveLength(1);
  await daemon.crictl("rmp", "-f", pod);
  await nothingLeft();
};

test("a plugin that fails at ADD fails the pod in its own words, and the address is free again", async () => {
  await order({ ADD: "fail" });
  const { code, stderr } = await daemon.tryCrictl("runp", podFile);
  expect(code).not.toBe(0);
  expect(stderr).toContain("ADD fails by order");
  await nothingLeft();
  await order({});
  await runAndRemove();
});

test("a plugin that hangs at ADD is given up when the caller is, and the address is free again", async () => {
  await order({ ADD: "hang" });
  const { code, stderr } = await daemon.tryCrictl("--timeout", "2s", "runp", podFile);
  expect(code).not.toBe(0);
  expect(stderr).toContain("DeadlineExceeded");
  // It is rolled back behind the caller's back; a pod that still starts is in no list.
  await expect.poll(addresses, { timeout: 20_000 }).toEqual([]);
  await expect.poll(() => remains(daemon), { timeout: 20_000 }).toEqual([]);
  await nothingLeft();
  await order({});
  await runAndRemove();
});

/** What is written down for DELs to come. */
const attachments = () => readdir(join(daemon.root, "attachments"));

test("a pod whose ADD and DEL fail can be removed, and its plugins are told again until they have let it go", async () => {
  await order({ ADD: "fail", DEL: "fail" });
  const { code, stderr } = await daemon.tryCrictl("runp", podFile);
  expect(code).not.toBe(0);
  expect(stderr).toContain("ADD fails by order");
  const [parked = ""] = await pods("--state", "NotReady");
  expect(parked).not.toBe("");
  await daemon.crictl("stopp", parked);
  await daemon.crictl("rmp", parked);
  await nothingLeft();
  expect(await attachments()).toEqual([`${parked}.json`]);
  // At a start, too.
  await daemon.end("SIGKILL");
  await daemon.start();
  expect(await attachments()).toEqual([`${parked}.json`]);
  await order({});
  await expect.poll(attachments, { timeout: 120_000 }).toEqual([]);
  await runAndRemove();
}, 240_000);

test("a pod that was attached waits for its DEL", async () => {
  const pod = (await daemon.crictl("runp", podFile)).trim();
  await order({ DEL: "fail" });
  const stop = await daemon.tryCrictl("stopp", pod);
  expect(stop.code).not.toBe(0);
  expect(stop.stderr).toContain("DEL fails by order");
  await order({});
  await daemon.crictl("stopp", pod);
  await daemon.crictl("rmp", pod);
  await nothingLeft();
  await runAndRemove();
});

test.each([
  ["bandwidth", { annotations: { "kubernetes.io/egress-bandwidth": "fast" } }, "egress-bandwidth"],
  ["name", { metadata: { name: "a;b", namespace: "test", uid: "uid", attempt: 0 } }, 'its name "a;b"'],
])(
  "a pod whose %s CNI cannot be told is refused before anything is made that DEL would have to be told of",
  async (_, fields, says) => {
    const file = join(scratch, "odd.json");
    const plain = JSON.parse(await readFile(podFile, "utf8")) as object;
    await writeFile(file, JSON.stringify({ ...plain, ...fields }));
    const { code, stderr } = await daemon.tryCrictl("runp", file);
    expect(code).not.toBe(0);
    expect(stderr.replaceAll('\\"', '"')).toContain(says);
    await nothingLeft();
  },
);

test("addresses of pods that ended with an earlier boot are given back at the next start", async () => {
  const list = join(daemon.confDir, "10.conflist");
  const before = await readFile(list, "utf8");
  const conf = JSON.parse(before) as { plugins: Record<string, unknown>[] };
  // Rules of iptables end with a boot, which this is not.
  await writeFile(list, JSON.stringify({ ...conf, plugins: [{ ...conf.plugins[0], ipMasq: false }] }));
  const file = join(scratch, "former.json");
  const plain = JSON.parse(await readFile(podFile, "utf8")) as object;
  const linux = { security_context: { namespace_options: { pid: 1 } } };
  await writeFile(file, JSON.stringify({ ...plain, linux }));
  await daemon.crictl("runp", file);
  expect(await addresses()).toHaveLength(1);
  await daemon.end("SIGKILL");
  await rm(join(daemon.state, "records", "pods"), { recursive: true });
  await daemon.start();
  await nothingLeft();
  await writeFile(list, before);
});
