import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { eventually } from "../lifecycle/life.ts";
import { difference, nodeListing } from "../lifecycle/listing.ts";
import { tool } from "../tools/cache.ts";
import { servesAnyShim } from "./behind.ts";
import { clampedGvisor, clampedRunc } from "./clamped.ts";
import { type EngineNode, startEngineNode } from "./node.ts";
import {
  leave,
  pidOf,
  podRuns,
  profile,
  runsAsBefore,
  settled,
  statusOf,
  withoutOthers,
} from "./profiles.ts";

/** The node's own containerd 2.4 serves profiles with `engine: node` (docs/engines.md). */

let node: EngineNode;
let listing: string[];
let artifacts: { gvisor: string; runc: string };
const dropin = "/etc/containerd/conf.d/zz-bulkhead.toml";

beforeAll(async () => {
  node = await startEngineNode({ name: "bulkhead-engine", files: () => ({}), api: true });
  await podRuns(node);
  artifacts = {
    gvisor: await clampedGvisor(node.registry),
    runc: await clampedRunc(node.registry, tool("containerd-shim-runc-v2")),
  };
  listing = await nodeListing(node);
  await node.startInstaller();
});
afterAll(() => node?.[Symbol.asyncDispose]());

describe("containerd", { timeout: 400_000 }, () => {
  test("serves a profile of the node's engine; it is restarted once, and its containers do not notice", async () => {
    const before = { pod: await podRuns(node), kubelet: await pidOf(node, "kubelet") };
    await node.want([profile("walled", "aaaaaaaaaa")]);
    await settled(node, "walled", { phase: "Ready", revision: "aaaaaaaaaa", canary: { passed: true } });
    expect(await node.exec(["containerd", "config", "dump"])).toContain("runtimes.walled");
    await runsAsBefore(node, before.pod);
    expect(await pidOf(node, "kubelet")).toBe(before.kubelet);
    await eventually(async () => {
      const { status } = await node.report();
      expect(status.engine).toMatchObject({ name: "containerd", fronted: false });
      expect(status.runtimeVersion).toBeUndefined();
    });
  });

  test("is not restarted when nothing in its files changes", async () => {
    const pid = await pidOf(node, "containerd");
    await node.want([profile("walled", "aaaaaaaaab", { probe: { interval: "5s", assertIsolation: true } })]);
    await settled(node, "walled", { phase: "Ready", revision: "aaaaaaaaab" });
    const { at } = (await statusOf(node, "walled"))?.canary ?? { at: "" };
    await eventually(async () => expect((await statusOf(node, "walled"))?.canary?.at).not.toBe(at), 30);
    expect((await statusOf(node, "walled"))?.phase).toBe("Ready");
    await node.startInstaller();
    await node.want([profile("walled", "aaaaaaaaab")]);
    await settled(node, "walled", { phase: "Ready" });
    expect(await pidOf(node, "containerd")).toBe(pid);
  });

  test("keeps its former configuration when it refuses the new one, without being restarted", async () => {
    const [pid, before] = [await pidOf(node, "containerd"), await node.exec(["cat", dropin])];
    await node.exec(["sh", "-c", `echo 'version = "three"' >/etc/containerd/conf.d/zzz.toml`]);
    await node.want([profile("walled", "aaaaaaaaab"), profile("second", "bbbbbbbbbb")]);
    await settled(node, "second", {
      phase: "Failed",
      message: expect.stringContaining("refuses its new configuration"),
    });
    expect(await statusOf(node, "walled")).toMatchObject({ revision: "aaaaaaaaab" });
    expect([await pidOf(node, "containerd"), await node.exec(["cat", dropin])]).toEqual([pid, before]);
    await node.exec(["rm", "/etc/containerd/conf.d/zzz.toml"]);
    await settled(node, "second", { phase: "Ready" });
    expect((await statusOf(node, "walled"))?.phase).toBe("Ready");
  });

  test("loses a handler whose canary fails, and goes on with the others", async () => {
    const before = await podRuns(node);
    await node.want([
      profile("walled", "aaaaaaaaab"),
      profile("third", "cccccccccc", {
        handler: {
          gvisor: { platform: "systrap", network: "sandbox", overlay: "memory", flags: ["--no-such-flag"] },
        },
      }),
    ]);
    await settled(node, "third", { phase: "Failed", message: expect.stringContaining("no-such-flag") });
    await settled(node, "walled", { phase: "Ready" });
    expect(await node.exec(["cat", dropin])).not.toContain("third");
    await runsAsBefore(node, before);
  });

  test("serves any shim, and gVisor with its overlay in files: pods of each; flags of runc it cannot", async () => {
    await servesAnyShim(node, profile("walled", "aaaaaaaaab"), artifacts);
    await node.want([profile("walled", "aaaaaaaaab")]);
    await eventually(async () => expect(await node.exec(["cat", dropin])).not.toContain("overlaid"), 60);
    await settled(node, "walled", { phase: "Ready" });
  });

  test("gets a lost drop-in back", async () => {
    await node.exec(["rm", dropin]);
    await eventually(async () => expect((await node.try(["cat", dropin])).stdout).toContain("walled"), 40);
    await settled(node, "walled", { phase: "Ready" });
  });

  test("is byte for byte what it was when the last profile goes; its containers are the same", async () => {
    const before = await podRuns(node);
    await leave(node);
    expect(await node.exec(["containerd", "config", "dump"])).not.toContain("walled");
    await runsAsBefore(node, before);
    await eventually(
      async () =>
        expect(difference(withoutOthers(listing), withoutOthers(await nodeListing(node)))).toEqual([]),
      30,
    );
  });
});
