import { existsSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { eventually } from "../lifecycle/life.ts";
import { inCache, tool } from "../tools/cache.ts";
import { debianProgram } from "../tools/debian.ts";
import { dockerHome } from "../tools/docker.ts";
import { chosenVersions } from "../tools/kubernetes.ts";
import { podBehind } from "./behind.ts";
import { clampedGvisor, clampedRunc, clampedRuntime } from "./clamped.ts";
import { podBehindGvisor } from "./gvisor.ts";
import { type EngineNode, startEngineNode } from "./node.ts";
import { gvisor, leave, pidOf, podRuns, profile, runsAsBefore, settled, statusOf } from "./profiles.ts";

/** Debian 13's docker.io behind cri-dockerd, with a kubelet of its own (docs/engines.md). */

let node: EngineNode;
let artifacts: { gvisor: string; runc: string };
/** From 1.36 a kubelet goes on to the engine's address itself, and cri-dockerd's has no scheme (docs/engines.md). */
const kubelet =
  Number(chosenVersions().kubelet.split(".")[1]) < 36
    ? {}
    : { featureGates: { ExtendWebSocketsToKubelet: false } };
const socket = "/run/cri-dockerd.sock";
const daemonJson = "/etc/docker/daemon.json";
const there = existsSync(inCache("bin", "cri-dockerd")) && existsSync(dockerHome());

/** Docker has no word for what containerd calls restrict_oom_score_adj: its default runtime is one that leaves scores. */
const config = (registry: string): string => `{
    "bridge": "none",
    "iptables": false,
    "data-root": "/var/lib/containerd/docker",
    "insecure-registries": ["${registry}"],
    "runtimes": { "clamped": { "path": "/opt/clamped/runc" } },
    "default-runtime": "clamped"
}
`;
const unit = `[Service]
ExecStartPre=/bin/chmod +x /opt/clamped/runc
ExecStart=/usr/sbin/dockerd
# containerd's and its shim's as Debian has them, before those of every node of ours.
Environment=PATH=/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin
Type=notify
Delegate=yes
KillMode=process
Restart=always
`;
const criUnit = (registry: string): string => `[Unit]
Requires=docker.service
After=docker.service

[Service]
ExecStart=/usr/local/bin/cri-dockerd --container-runtime-endpoint=unix://${socket} --pod-infra-container-image=${registry}/pause:latest
Type=notify
KillMode=process
Restart=always
`;

beforeAll(async () => {
  if (!there) return;
  node = await startEngineNode({
    name: "bulkhead-engine",
    socket,
    api: true,
    kubelet,
    trees: [dockerHome()],
    debs: [
      ["containerd", "usr/bin/containerd"],
      ["runc", "usr/sbin/runc"],
    ],
    files: (registry) => ({
      [daemonJson]: config(registry),
      "/opt/clamped/runc": clampedRuntime("runc-real"),
      "/etc/crictl.yaml": `runtime-endpoint: unix://${socket}\n`,
      "/etc/systemd/system/docker.service": unit,
      "/etc/systemd/system/cri-docker.service": criUnit(registry),
      "/etc/systemd/system/containerd.service": "[Service]\nType=oneshot\nExecStart=/bin/true\n",
      "/etc/systemd/system/kubelet.service.d/docker.conf":
        "[Unit]\nWants=cri-docker.service\nAfter=cri-docker.service\n",
    }),
    programs: { "/opt/clamped/runc-real": tool("runc"), "/usr/local/bin/cri-dockerd": tool("cri-dockerd") },
  });
  await podRuns(node);
  artifacts = {
    gvisor: await clampedGvisor(node.registry),
    runc: await clampedRunc(
      node.registry,
      await debianProgram("containerd", "usr/bin/containerd-shim-runc-v2"),
    ),
  };
  await node.startInstaller();
});
afterAll(() => node?.[Symbol.asyncDispose]());

const runtimes = async (): Promise<string[]> =>
  Object.keys(JSON.parse(await node.exec(["docker", "info", "-f", "{{json .Runtimes}}"])) as object);

const skipped = there ? "" : " (skipped: ./dev tools makes cri-dockerd and fetches Docker)";
describe.skipIf(!there)(`Docker${skipped}`, { timeout: 240_000 }, () => {
  test("serves gVisor after a SIGHUP; nothing is restarted, and daemon.json keeps what was there", async () => {
    const before = { pod: await podRuns(node), docker: await pidOf(node, "docker") };
    await node.want([
      gvisor("sandboxed", "aaaaaaaaaa", artifacts.gvisor, { network: "host" }),
      gvisor("own-network", "bbbbbbbbbb", artifacts.gvisor),
      profile("flagged", "cccccccccc", {
        handler: { runc: { flags: ["--debug"] } },
        artifact: { image: artifacts.runc },
      }),
    ]);
    await eventually(async () => expect(await runtimes()).toContain("sandboxed"), 60);
    // It keeps for a minute what Docker said of its runtimes. Bulkhead waits for that; the test has no time to.
    await node.exec(["systemctl", "restart", "cri-docker"]);
    await settled(node, "sandboxed", {
      phase: "Ready",
      canary: { passed: true, assertions: expect.arrayContaining(["kernel-differs"]) },
    });
    await settled(node, "flagged", { phase: "Ready", canary: { passed: true } });
    expect(await statusOf(node, "own-network")).toMatchObject({ phase: "Failed", reason: "NotSupported" });
    expect((await node.report()).status.engine).toMatchObject({ name: "docker", fronted: false });
    expect(JSON.parse(await node.exec(["cat", daemonJson]))).toMatchObject({
      bridge: "none",
      runtimes: { clamped: { path: "/opt/clamped/runc" }, sandboxed: {} },
    });
    await runsAsBefore(node, before.pod);
    expect(await pidOf(node, "docker")).toBe(before.docker);
  });

  test("starts a pod of its class behind that kernel, one by runc with flags, and a container without a pod", async () => {
    await podBehindGvisor(node, "sandboxed");
    await podBehind(node, "flagged", async ({ exec }) =>
      expect(await exec("cat", "/proc/1/comm")).toBe("sleep\n"),
    );
    const image = `${node.registry}/bulkhead/test:1`;
    const version = (...options: string[]) =>
      node.exec(["docker", "run", "--rm", "--network=none", ...options, image, "cat", "/proc/version"]);
    expect(await version("--runtime=sandboxed")).toContain("gvisor");
    expect(await version()).not.toContain("gvisor");
  });

  test("is byte for byte what it was when the profile goes; its containers are the same", async () => {
    const before = { pod: await podRuns(node), docker: await pidOf(node, "docker") };
    await leave(node);
    expect(await node.exec(["cat", daemonJson])).toBe(config(node.registry));
    await eventually(async () => expect(await runtimes()).not.toContain("sandboxed"), 20);
    await runsAsBefore(node, before.pod);
    expect(await pidOf(node, "docker")).toBe(before.docker);
  });
});
