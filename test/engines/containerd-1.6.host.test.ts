import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { eventually } from "../lifecycle/life.ts";
import { difference, nodeListing } from "../lifecycle/listing.ts";
import { tool } from "../tools/cache.ts";
import { debianProgram } from "../tools/debian.ts";
import { podBehind, podsBehind } from "./behind.ts";
import { clampedGvisor, clampedRunc } from "./clamped.ts";
import { oldConfig } from "./containerd-config.ts";
import { frontedTests } from "./fronted.ts";
import { type EngineNode, startEngineNode } from "./node.ts";
import {
  copied,
  gvisor,
  leave,
  pidOf,
  podRuns,
  profile,
  runsAsBefore,
  settled,
  withoutOthers,
} from "./profiles.ts";

/** Debian's containerd 1.6.20 with its own configuration, which imports nothing (docs/engines.md). */

let node: EngineNode;
let listing: string[];
let artifacts: { gvisor: string; runc: string };
const main = "/etc/containerd/config.toml";
const own = "/etc/containerd/bulkhead.toml";

const unit = `[Service]
ExecStart=/usr/bin/containerd
# Not the shim of the other containerd, which every node of ours has in /usr/local/bin.
Environment=PATH=/usr/bin:/bin:/usr/sbin:/sbin:/opt/runc
Type=notify
Delegate=yes
KillMode=process
Restart=always
`;

beforeAll(async () => {
  node = await startEngineNode({
    name: "bulkhead-engine",
    api: true,
    debs: [["containerd", "usr/bin/containerd"]],
    files: (registry) => ({ [main]: oldConfig(registry), "/etc/systemd/system/containerd.service": unit }),
    programs: { "/opt/runc/runc": tool("runc") },
  });
  await podRuns(node);
  artifacts = {
    gvisor: await clampedGvisor(node.registry),
    runc: await clampedRunc(
      node.registry,
      await debianProgram("containerd", "usr/bin/containerd-shim-runc-v2"),
    ),
  };
  listing = await nodeListing(node);
  await node.startInstaller();
});
afterAll(() => node?.[Symbol.asyncDispose]());

describe("containerd 1.6", { timeout: 400_000 }, () => {
  test("serves a profile; its containers do not notice, and its CRI section is as it was, with the handler", async () => {
    expect(await node.exec(["/usr/bin/containerd", "--version"])).toContain("1.6.20");
    const before = { pod: await podRuns(node), kubelet: await pidOf(node, "kubelet") };
    await node.want([profile("walled", "aaaaaaaaaa")]);
    await settled(node, "walled", { phase: "Ready", canary: { passed: true } });
    await runsAsBefore(node, before.pod);
    expect(await pidOf(node, "kubelet")).toBe(before.kubelet);
    expect(await node.exec(["cat", own])).toContain("restrict_oom_score_adj = true");
    expect(await node.exec(["head", "-1", main])).toContain(`imports = ["${own}"]`);
  });

  test("serves any shim, crun and gVisor with its overlay in files: pods of each", async () => {
    const before = await podRuns(node);
    await node.want([
      profile("walled", "aaaaaaaaaa"),
      copied("copied", "bbbbbbbbbb", artifacts.runc),
      profile("crunned", "cccccccccc", { handler: { crun: {} } }),
      gvisor("overlaid", "dddddddddd", artifacts.gvisor, { overlay: "directory" }),
    ]);
    for (const name of ["copied", "overlaid", "crunned"])
      await settled(node, name, { phase: "Ready", canary: { passed: true } });
    await podsBehind(node);
    await podBehind(node, "crunned", async ({ id, exec }) => {
      expect(await exec("cat", "/proc/1/comm")).toBe("sleep\n");
      // crun writes a status that runc does not: the one of a container that it made.
      const made = `find /run/containerd -path "*/${id}/status" | xargs cat | grep -c cgroup-path`;
      expect(await node.exec(["sh", "-c", made])).toBe("1\n");
    });
    await runsAsBefore(node, before);
    await node.want([profile("walled", "aaaaaaaaaa")]);
    await eventually(async () => expect(await node.exec(["cat", own])).not.toContain("overlaid"), 60);
    await settled(node, "walled", { phase: "Ready" });
  });

  test("follows what its owner writes into its configuration, and keeps that when Bulkhead goes", async () => {
    await node.exec([
      "sed",
      "-i",
      "s/restrict_oom_score_adj/max_container_log_line_size = 4096\\n    &/",
      main,
    ]);
    await eventually(async () => expect(await node.exec(["cat", own])).toContain("4096"), 60);
    await settled(node, "walled", { phase: "Ready" });
    const pid = await pidOf(node, "containerd");
    await node.exec(["sed", "-i", "/max_container_log_line_size/d", main]);
    await eventually(async () => expect(await pidOf(node, "containerd")).not.toBe(pid), 60);
    await settled(node, "walled", { phase: "Ready" });
  });

  frontedTests(() => node, { name: "containerd", unit: "containerd" });

  test("is what it was when the last profile goes; its containers are the same", async () => {
    const before = await podRuns(node);
    await leave(node);
    await runsAsBefore(node, before);
    const without = (lines: string[]): string[] =>
      withoutOthers(lines).filter((line) => !line.startsWith(`changed .${main}`));
    await eventually(
      async () => expect(difference(without(listing), without(await nodeListing(node)))).toEqual([]),
      30,
    );
  });
});
