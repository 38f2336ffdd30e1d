import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readFiles } from "../../node-agent/src/engine/detect.ts";
import { docker } from "../../node-agent/src/engine/docker.ts";
import type { Engine, EngineHandler } from "../../node-agent/src/engine/engine.ts";
import { planChange } from "../../node-agent/src/engine/plan.ts";
import { type Host, realIn, resolveIn } from "../../node-agent/src/installer/host.ts";
import { Ownership } from "../../node-agent/src/installer/ownership.ts";
import { execute, executors } from "../../node-agent/src/installer/steps.ts";
import { eventually } from "../lifecycle/life.ts";
import { tool } from "../tools/cache.ts";
import { type EngineNode, startEngineNode } from "./node.ts";
import { pidOf } from "./profiles.ts";

/**
 * Debian's docker.io takes up a handler by SIGHUP and runs a container in gVisor (docs/engines.md). The steps are the
 * installer's own; left out is what asks cri-dockerd, which this machine cannot run pods with: it gives a pod's first
 * container an oom_score_adj of -998, and nobody here may lower one.
 */

let node: EngineNode;
let host: Host;
let ownership: Ownership;
const daemonJson = "/etc/docker/daemon.json";
const program = "/opt/bulkhead/versions/1/bin/runsc";
const handler: EngineHandler = {
  name: "sandboxed",
  kind: "gvisor",
  program,
  args: ["--platform=systrap", "--network=sandbox", "--overlay2=root:memory"],
  annotations: [],
};
const config = (registry: string): string => `{
    "bridge": "none",
    "iptables": false,
    "data-root": "/var/lib/containerd/docker",
    "insecure-registries": ["${registry}"]
}
`;
const unit = `[Service]
ExecStart=/usr/sbin/dockerd
# containerd's and its shim's as Debian has them, before those of every node of ours.
Environment=PATH=/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin
Type=notify
Delegate=yes
KillMode=process
`;

beforeAll(async () => {
  node = await startEngineNode({
    name: "bulkhead-engine",
    debs: [
      ["docker.io", "usr/sbin/dockerd"],
      ["containerd", "usr/bin/containerd"],
      ["runc", "usr/sbin/runc"],
      ["libdevmapper1.02.1", "lib/x86_64-linux-gnu/libdevmapper.so.1.02.1"],
    ],
    files: (registry) => ({ [daemonJson]: config(registry), "/etc/systemd/system/docker.service": unit }),
    programs: { [program]: tool("runsc") },
  });
  await node.exec(["systemctl", "start", "docker"]);
  await node.exec(["docker", "pull", "-q", `${node.registry}/bulkhead/test:1`]);
  host = {
    at: (path) => resolveIn(node.root, path),
    real: (path) => realIn(node.root, path),
    run: (argv) => node.try(argv),
    fetch: () => Promise.reject(new Error("nothing is fetched")),
    serveLayout: () => Promise.reject(new Error("nothing is served")),
  };
  ownership = new Ownership(host, "/opt/bulkhead/installed.json");
});
afterAll(() => node?.[Symbol.asyncDispose]());

const silent = (): undefined => undefined;
const log = { info: silent, warn: silent, debug: silent } as unknown as Parameters<typeof execute>[3];

const tell = async (handlers: EngineHandler[]): Promise<void> => {
  const pid = Number(await pidOf(node, "docker"));
  const argv = ["/usr/sbin/dockerd"];
  const engine: Engine = {
    kind: "docker",
    version: "20.10.24",
    socket: "/run/cri-dockerd.sock",
    pid,
    argv,
    program: "/usr/sbin/dockerd",
    unit: "docker.service",
    killMode: "process",
    startedAt: 0,
    files: await readFiles(host, "docker", argv, ownership.record.engine),
  };
  const { record } = ownership;
  const { files, load } = planChange(
    engine,
    docker.plan(engine, handlers, record.engine),
    record.engine,
    handlers,
    false,
  );
  const run = executors({
    host,
    ownership,
    bundle: "",
    manifest: { version: "1", files: [] },
    log,
    note: () => undefined,
  });
  await execute(
    [...files, ...load].filter((step) => step.do !== "await-engine"),
    run,
    AbortSignal.timeout(60_000),
    log,
  );
};
const runtimes = async (): Promise<string[]> =>
  Object.keys(JSON.parse(await node.exec(["docker", "info", "-f", "{{json .Runtimes}}"])) as object);
const dmesg = (...options: string[]) =>
  node.try([
    "docker",
    "run",
    "--rm",
    "--network=none",
    ...options,
    `${node.registry}/bulkhead/test:1`,
    "dmesg",
  ]);

describe("Docker", { timeout: 180_000 }, () => {
  test("runs a container in gVisor after a SIGHUP; nothing is restarted, and daemon.json keeps what was there", async () => {
    const image = `${node.registry}/bulkhead/test:1`;
    await node.exec(["docker", "run", "-d", "--name=old", "--network=none", image, "sleep", "10000"]);
    const state = async () => [
      await pidOf(node, "docker"),
      await node.exec(["docker", "inspect", "-f", "{{.State.Pid}}", "old"]),
    ];
    const before = await state();
    await tell([handler]);
    await eventually(async () => expect(await runtimes()).toContain("sandboxed"), 20);
    expect(await dmesg("--runtime=sandboxed")).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/gVisor/),
    });
    expect((await dmesg()).stdout).not.toMatch(/gVisor/);
    expect(JSON.parse(await node.exec(["cat", daemonJson]))).toMatchObject({
      bridge: "none",
      iptables: false,
    });
    expect(await state()).toEqual(before);
  });

  test("is byte for byte what it was when the handler goes", async () => {
    await tell([]);
    expect(await node.exec(["cat", daemonJson])).toBe(config(node.registry));
    // A daemon.json without runtimes tells dockerd nothing of them: it forgets the handler at its next start.
    await node.exec(["systemctl", "restart", "docker"]);
    expect(await runtimes()).not.toContain("sandboxed");
  });
});
