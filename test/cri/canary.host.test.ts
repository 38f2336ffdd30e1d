import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { connectCri } from "@bulkhead/lib/cri/client.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { runCanary } from "../../node-agent/src/probe/canary.ts";
import {
  judge,
  type Mark,
  parseView,
  type Verdict,
  type View,
  type Wall,
} from "../../node-agent/src/probe/wall.ts";
import { ensureTestImages } from "../images/build.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { inCache, tool } from "../tools/cache.ts";
import { built } from "../tools/cargo.ts";
import { createDaemon, type Daemon, remains } from "./daemon.ts";
import { gvisorHandler, shimHandler } from "./handlers.ts";

/** The agent's canary on real walls, and on walls that are less than they are called. */

let scratch: string;
let registry: RunningRegistry;
let daemon: Daemon;

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "bh-canary-"));
  registry = await startRegistry({ dir: inCache("cri-registry") });
  await ensureTestImages(registry.host, ["canary:1"]);
  daemon = await createDaemon({ registry: registry.host, subnet: 87 });
  await daemon.start();
});
afterAll(async () => {
  expect(await remains(daemon)).toEqual([]);
  await daemon?.[Symbol.asyncDispose]();
  await registry?.stop();
  await rm(scratch, { recursive: true, force: true });
});

const kinds = ["pid", "mnt", "net", "ipc", "uts"];
/** As the installer reads it of its node. */
const host = async (): Promise<View> => {
  const read = async (path: string) => (await readFile(path, "utf8")).trim();
  const namespaces = await Promise.all(
    kinds.map(async (kind) => `ns.${kind}=${await readlink(`/proc/self/ns/${kind}`)}`),
  );
  return parseView(
    [
      `version=${await read("/proc/version")}`,
      `bootId=${await read("/proc/sys/kernel/random/boot_id")}`,
      `cmdline=${await read("/proc/cmdline")}`,
      ...namespaces,
    ].join("\n"),
  );
};

const prove = async (
  handler: string,
  wall: Wall,
  mark?: Mark,
): Promise<Verdict & { overheadBytes: number }> => {
  using cri = connectCri(daemon.socket);
  // gVisor's shim writes a log of its own there.
  const logs = join(scratch, "logs");
  const { view, outside } = await runCanary(cri, handler, AbortSignal.timeout(60_000), {
    volume: join(scratch, "volume"),
    logs: { node: logs, here: logs },
  });
  expect(existsSync(logs)).toBe(false);
  return { ...judge(wall, view, await host(), mark, outside), overheadBytes: outside.overheadBytes };
};

/** A handler file; the daemon takes it up by itself. */
const serve = async (name: string, config: object): Promise<string> => {
  await writeFile(join(daemon.handlersDir, `${name}.yaml`), JSON.stringify({ ...config, name }));
  await expect.poll(() => daemon.crictl("info"), { timeout: 20_000 }).toContain(`"${name}"`);
  return name;
};
const gvisor: Mark = { engine: "gvisor", network: "sandbox", platform: "systrap" };

describe("the canary", () => {
  test("shows that runc is namespaces, and what its monitor costs", async () => {
    const { broken, overheadBytes } = await prove("runc", "namespaces");
    expect(broken).toEqual([]);
    expect(overheadBytes).toBeGreaterThan(100_000);
    expect(overheadBytes).toBeLessThan(10_000_000);
  });

  test("brings what the kubelet's containers do: a volume that is to be relabelled, and a log of its own", async () => {
    using cri = connectCri(daemon.socket);
    const [volume, logs] = [join(scratch, "labelled"), join(scratch, "logs")];
    const asked: unknown[] = [];
    const { createContainer } = cri.runtime;
    const runtime: typeof cri.runtime = {
      ...cri.runtime,
      createContainer: (request, signal) => {
        asked.push(
          ...(request.config?.mounts ?? []),
          request.sandboxConfig?.logDirectory,
          request.config?.logPath,
        );
        return createContainer(request, signal);
      },
    };
    await runCanary({ ...cri, runtime }, "runc", AbortSignal.timeout(60_000), {
      logs: { node: logs, here: logs },
      volume,
    });
    expect(asked).toEqual([
      { containerPath: "/volume", hostPath: volume, readonly: true, selinuxRelabel: true },
      logs,
      "canary.log",
    ]);
    expect(await readdir(volume)).toEqual([]);
  });

  test("shows that gVisor is a kernel of its own whose pod is no process of the node, and what it costs", async () => {
    const { broken, assertions, overheadBytes } = await prove("gvisor", "kernel", gvisor);
    expect(broken).toEqual([]);
    expect(assertions).toHaveLength(11);
    // Sentry, gofers and the shim: facts/sandboxes.md measured 27 + 16 + 13 MB.
    expect(overheadBytes).toBeGreaterThan(20_000_000);
    expect(overheadBytes).toBeLessThan(150_000_000);
  });
});

test.runIf(built("containerd-shim-wasmi-v1"))(
  "the canary tells what it sees by its log where nothing can be executed",
  async () => {
    const shim = { kind: "shim", binary: tool("containerd-shim-wasmi-v1"), wall: "namespaces" };
    const handler = await serve("wasm", shim);
    const { broken, assertions, overheadBytes } = await prove(handler, "namespaces");
    expect(broken).toEqual([]);
    expect(assertions).toContain("own-pid-namespace");
    expect(overheadBytes).toBeGreaterThan(1_000_000);
  },
);

describe("a wall that is less than its profile says is found broken:", () => {
  test("a handler called gVisor whose program is really runc", async () => {
    const { broken } = await prove(await serve("really-runc", shimHandler()), "kernel", gvisor);
    expect(broken).toEqual([
      "kernel-differs",
      "boot-differs",
      "boot-line-differs",
      "kernel-is-gvisor",
      "kernel-log-is-gvisors",
      "hidden-from-host",
      "runs-in-runsc",
      "network-as-profiled",
      "platform-as-profiled",
    ]);
  });

  test.each([
    ["runsc with the node's sockets", { network: "host" as const }, ["network-as-profiled"]],
    ["runsc on another platform", { platform: "ptrace" as const }, ["platform-as-profiled"]],
  ])("%s", async (_what, really, broken) => {
    const root = join(dirname(daemon.state), "runsc");
    const name = `really-${Object.values(really)[0]}`;
    await serve(name, await gvisorHandler(scratch, root, { name, ...really }));
    expect((await prove(name, "kernel", gvisor)).broken).toEqual(broken);
  });

  test("runc in the node's own namespaces, which every one of its assertions misses", async () => {
    const verdict = judge("namespaces", await host(), await host());
    expect(verdict.assertions.filter((name) => name.endsWith("-namespace"))).toEqual([]);
  });
});
