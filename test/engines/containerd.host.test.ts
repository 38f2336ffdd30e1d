import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { eventually } from "../lifecycle/life.ts";
import { difference, nodeListing } from "../lifecycle/listing.ts";
import { tool } from "../tools/cache.ts";
import { servesAnyShim } from "./behind.ts";
import { clampedGvisor, clampedRunc, slowRunc } from "./clamped.ts";
import { type EngineNode, startEngineNode } from "./node.ts";
import {
  copied,
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

/** The kubelet's static pods. */
const manifests = async (): Promise<string[]> =>
  (await node.exec(["ls", "-A", "/etc/kubernetes/manifests"])).trim().split("\n");
/** The engine's pods that are canaries of this handler. */
const canaries = (name: string): Promise<string> =>
  node.exec(["crictl", "pods", "-q", "--label", `bulkhead.dev/canary=${name}`]);
/** What the installer and the kubelet said last. */
const story = (): Promise<string> =>
  node.exec([
    "journalctl",
    "-u",
    "installer",
    "-u",
    "kubelet",
    "-u",
    "containerd",
    "-n",
    "150",
    "--no-pager",
  ]);
const runtimeClass = (handler: string): Promise<string> =>
  node.kubectl(["apply", "-f", "-"], {
    input: JSON.stringify({
      apiVersion: "node.k8s.io/v1",
      kind: "RuntimeClass",
      metadata: { name: handler },
      handler,
    }),
  });

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

  test("proves a handler that is slower than the kubelet's looks by a pod of the kubelet's own", async () => {
    const before = await podRuns(node);
    const files = await manifests();
    await runtimeClass("slow");
    const slow = copied(
      "slow",
      "ffffffffff",
      await slowRunc(node.registry, tool("containerd-shim-runc-v2"), 5),
    );
    await node.want([profile("walled", "aaaaaaaaab"), slow]);
    await settled(node, "slow", {
      phase: "Ready",
      canary: { passed: true, assertions: expect.arrayContaining(["own-pid-namespace"]) },
    });
    // The pod's own container, and the canary in it.
    expect((await statusOf(node, "slow"))?.canary?.startSeconds).toBeGreaterThan(10);
    const log = await node.exec(["journalctl", "-u", "kubelet", "-o", "cat"]);
    expect(log).toContain("bulkhead-canary/canary-slow-node-1");
    // No API server hears of it.
    expect(await node.kubectl(["get", "pods", "-A", "-o", "name"])).not.toContain("canary");
    expect(await manifests()).toEqual(files);
    expect(await canaries("slow"), await story()).toBe("");
    await settled(node, "walled", { phase: "Ready" });
    await runsAsBefore(node, before);
  });

  test("has no such pod of an installer that was killed meanwhile", async () => {
    const files = await manifests();
    const slow = copied(
      "slow",
      "fffffffff0",
      await slowRunc(node.registry, tool("containerd-shim-runc-v2"), 5),
    );
    await node.want([profile("walled", "aaaaaaaaab"), slow]);
    await eventually(async () => expect(await manifests()).toContain("bulkhead-canary-slow.json"), 60);
    await node.startInstaller();
    expect(await manifests()).toContain("bulkhead-canary-slow.json");
    await node.want([profile("walled", "aaaaaaaaab")]);
    await settled(node, "walled", { phase: "Ready" });
    expect(await manifests()).toEqual(files);
    expect(await canaries("slow")).toBe("");
    await node.kubectl(["delete", "runtimeclass", "slow"]);
  });

  test("loses a handler that hangs as soon as it is wanted no more, whatever its canary still waits for", async () => {
    const hangs = copied(
      "hangs",
      "abababab00",
      await slowRunc(node.registry, tool("containerd-shim-runc-v2"), 900),
    );
    await node.want([profile("walled", "aaaaaaaaab"), hangs]);
    await eventually(async () => expect((await node.try(["pgrep", "-f", "sleep 900"])).code).toBe(0), 60);
    await node.want([profile("walled", "aaaaaaaaab")]);
    await eventually(async () => expect(node.through(await node.report())).toBe(true), 60);
    expect(await statusOf(node, "hangs")).toBeUndefined();
    expect(await node.exec(["cat", dropin])).not.toContain("hangs");
    await settled(node, "walled", { phase: "Ready" });
    // The lines of shell that hung leave their sleep behind; the shim goes.
    await eventually(
      async () => expect((await node.try(["pgrep", "-f", "[b]in/copied-shim"])).code).toBe(1),
      30,
    );
    await node.exec(["pkill", "-f", "sleep 900"]);
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
