import { existsSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { eventually } from "../lifecycle/life.ts";
import { difference, nodeListing } from "../lifecycle/listing.ts";
import { inCache, tool } from "../tools/cache.ts";
import { debianProgram } from "../tools/debian.ts";
import { servesAnyShim } from "./behind.ts";
import { clampedGvisor, clampedRunc } from "./clamped.ts";
import { frontedTests } from "./fronted.ts";
import { podBehindGvisor } from "./gvisor.ts";
import { type EngineNode, startEngineNode } from "./node.ts";
import { gvisor, leave, pidOf, podRuns, profile, runsAsBefore, settled, withoutOthers } from "./profiles.ts";

/** CRI-O with a kubelet of its own takes up a handler and loses it again (docs/engines.md). */

let node: EngineNode;
let listing: string[];
let artifacts: { gvisor: string; runc: string };
const socket = "/run/crio/crio.sock";
const dropin = "/etc/crio/crio.conf.d/99-bulkhead.conf";
const programs = ["crio", "pinns"].map((name) => inCache("bin", name));
const there = programs.every(existsSync);

const config = (registry: string): string => `[crio]
root = "/var/lib/containerd/crio"
runroot = "/run/containers/storage"
storage_driver = "overlay"

[crio.api]
listen = "${socket}"

[crio.image]
pause_image = "${registry}/pause:latest"
insecure_registries = ["${registry}"]
signature_policy = "/etc/crio/policy.json"

[crio.network]
network_dir = "/etc/cni/net.d"
plugin_dirs = ["/opt/cni/bin"]

[crio.runtime]
default_runtime = "runc"
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
conmon = "/usr/bin/conmon"
pinns_path = "/usr/local/bin/pinns"

[crio.runtime.runtimes.runc]
runtime_path = "/usr/local/bin/runc"
runtime_root = "/run/runc"
`;

/** CRI-O keeps what it knows of images and names, pods' logs, and the cgroup of pods that name none. */
const own = /(^| )\.\/((var\/(lib|cache|log)|run)\/(containers|crio)|[^/]+\/crio)(\/| |$)/;
const without = (lines: string[]): string[] => withoutOthers(lines).filter((line) => !own.test(line));

const unit = `[Service]
# The machine under the nodes knows controllers that are mounted nowhere, and CRI-O would use them.
ExecStartPre=/bin/sh -c "grep -q hugetlb.*0 /proc/cgroups && awk '$$2 != 0' /proc/cgroups >/run/cgroups && mount --bind /run/cgroups /proc/cgroups; true"
ExecStart=/usr/local/bin/crio
ExecReload=/bin/kill -s HUP $MAINPID
Type=notify
Delegate=yes
KillMode=process
Restart=always
TimeoutStartSec=40
`;

beforeAll(async () => {
  if (!there) return;
  node = await startEngineNode({
    name: "bulkhead-engine",
    socket,
    api: true,
    debs: [
      ["conmon", "usr/bin/conmon"],
      ["libglib2.0-0", "usr/lib/x86_64-linux-gnu/libglib-2.0.so.0"],
    ],
    files: (registry) => ({
      "/etc/crio/crio.conf": config(registry),
      // As packages have it: a directory that was not there at the start is not read at SIGHUP.
      "/etc/crio/crio.conf.d/10-crio.conf": "[crio]\n",
      "/etc/crio/policy.json": '{ "default": [{ "type": "insecureAcceptAnything" }] }\n',
      "/etc/crictl.yaml": `runtime-endpoint: unix://${socket}\n`,
      "/etc/systemd/system/crio.service": unit,
      "/etc/systemd/system/containerd.service": "[Service]\nType=oneshot\nExecStart=/bin/true\n",
      "/etc/systemd/system/kubelet.service.d/crio.conf": "[Unit]\nWants=crio.service\nAfter=crio.service\n",
    }),
    programs: { "/usr/local/bin/crio": tool("crio"), "/usr/local/bin/pinns": tool("pinns") },
  });
  await podRuns(node);
  artifacts = {
    gvisor: await clampedGvisor(node.registry),
    // One that answers with an address alone, as CRI-O's client of shims wants it.
    runc: await clampedRunc(
      node.registry,
      await debianProgram("containerd", "usr/bin/containerd-shim-runc-v2"),
    ),
  };
  listing = await nodeListing(node);
  await node.startInstaller();
});
afterAll(() => node?.[Symbol.asyncDispose]());

const skipped = there ? "" : " (skipped: ./dev tools makes CRI-O)";
describe.skipIf(!there)(`CRI-O${skipped}`, { timeout: 400_000 }, () => {
  test("serves an OCI handler; it is told by SIGHUP, is seen not to take it up and restarted; its containers do not notice", async () => {
    const before = { pod: await podRuns(node), kubelet: await pidOf(node, "kubelet") };
    await node.want([profile("walled", "aaaaaaaaaa")]);
    await settled(node, "walled", { phase: "Ready", canary: { passed: true } });
    expect(await node.exec(["crio", "status", "-s", socket, "config"])).toContain("runtimes.walled");
    await runsAsBefore(node, before.pod);
    expect(await pidOf(node, "kubelet")).toBe(before.kubelet);
    // A CRI-O that starts pods by what it read at SIGHUP says EngineReloaded here.
    expect((await node.report()).happenings).toContainEqual(
      expect.objectContaining({
        reason: "EngineRestarted",
        message: expect.stringContaining('was sent SIGHUP, and it starts no pods by "walled"'),
      }),
    );
  });

  test("serves gVisor by its shim: a pod's log, exec, network and second container are behind its kernel", async () => {
    const before = await podRuns(node);
    await node.want([profile("walled", "aaaaaaaaaa"), gvisor("sandboxed", "bbbbbbbbbb", artifacts.gvisor)]);
    await settled(node, "sandboxed", { phase: "Ready", canary: { passed: true } });
    await settled(node, "walled", { phase: "Ready" });
    await runsAsBefore(node, before);
    await podBehindGvisor(node, "sandboxed");
  });

  test("serves any shim, and gVisor with its overlay in files: pods of each; flags of runc it cannot", async () => {
    await servesAnyShim(node, profile("walled", "aaaaaaaaaa"), artifacts);
  });

  frontedTests(() => node, { name: "cri-o", unit: "crio" });

  test("is what it was when the last profile goes; its containers are the same", async () => {
    const before = { pod: await podRuns(node), crio: await pidOf(node, "crio") };
    // A profile that goes changes the engine's files, and nobody else did.
    expect((await node.report()).happenings.map(({ reason }) => reason)).not.toContain("Drifted");
    await leave(node);
    expect((await node.try(["cat", dropin])).code).not.toBe(0);
    expect(await node.exec(["crio", "status", "-s", socket, "config"])).not.toContain("runtimes.walled");
    await runsAsBefore(node, before.pod);
    expect(await pidOf(node, "crio")).toBe(before.crio);
    await eventually(
      async () => expect(difference(without(listing), without(await nodeListing(node)))).toEqual([]),
      30,
    );
  });
});
