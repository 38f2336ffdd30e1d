import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { eventually } from "../lifecycle/life.ts";
import { difference, nodeListing } from "../lifecycle/listing.ts";
import { podBehind } from "./behind.ts";
import { distributions } from "./distributions.ts";
import { type EngineNode, startEngineNode } from "./node.ts";
import { leave, pidOf, podRuns, profile, runsAsBefore, settled, withoutOthers } from "./profiles.ts";

/** Profiles on nodes whose kubelet runs inside k3s or microk8s, which are fakes here (docs/engines.md). */

describe.each(distributions)("%s", { timeout: 400_000 }, (_, distribution) => {
  const { inside, kubelet, containerd, config } = distribution;
  let node: EngineNode;
  let listing: string[];
  const own = profile("own", "bbbbbbbbbb", { engine: "bulkhead" });
  const walled = profile("walled", "aaaaaaaaaa");
  const refused = {
    phase: "Failed",
    reason: "NotSupported",
    message: expect.stringContaining(`the kubelet runs inside ${inside} (${kubelet})`),
  };

  beforeAll(async () => {
    node = await startEngineNode({ name: "bulkhead-engine", api: true, ...distribution.node });
    await podRuns(node);
    listing = await nodeListing(node);
    await node.startInstaller();
  });
  afterAll(() => node?.[Symbol.asyncDispose]());

  test("does not take Bulkhead's own runtime: the profile says why, and nothing comes to the node", async () => {
    // Nor its artifact, which nobody asks the registry for.
    const image = `${node.registry}/artifacts/none@sha256:${"0".repeat(64)}`;
    await node.want([{ ...own, artifact: { image } }]);
    await settled(node, "own", refused);
    expect((await node.try(["ls", "/opt/bulkhead"])).code).not.toBe(0);
    expect((await node.report()).status.engine).toMatchObject({ name: "containerd", fronted: false });
  });

  test("serves a profile by its own containerd, to a pod of its class; its containers do not notice", async () => {
    const before = await podRuns(node);
    await node.want([own, walled]);
    await settled(node, "walled", { phase: "Ready", canary: { passed: true } });
    await settled(node, "own", refused);
    expect(await node.exec(["containerd", "--config", config, "config", "dump"])).toContain(
      "runtimes.walled",
    );
    await podBehind(node, "walled", async ({ exec }) => {
      expect(await exec("cat", "/proc/1/comm")).toBe("sleep\n");
    });
    await runsAsBefore(node, before);
  });

  test("has the handler after it writes its configuration anew, and is not restarted for it", async () => {
    await node.exec(["systemctl", "restart", containerd]);
    await podRuns(node);
    const pid = await pidOf(node, containerd);
    await node.startInstaller();
    await node.want([{ ...walled, probe: { interval: "5s", assertIsolation: true } }]);
    await settled(node, "walled", { phase: "Ready", canary: { passed: true } });
    expect(await pidOf(node, containerd)).toBe(pid);
  });

  test("is what it was when the last profile goes; its containers are the same", async () => {
    const before = await podRuns(node);
    await leave(node);
    expect(await node.exec(["containerd", "--config", config, "config", "dump"])).not.toContain("walled");
    await runsAsBefore(node, before);
    const without = (lines: string[]): string[] =>
      withoutOthers(lines).filter(
        (line) => !/ \.?\/(run\/k3s|var\/snap\/microk8s\/common\/run)\//.test(line),
      );
    await eventually(
      async () => expect(difference(without(listing), without(await nodeListing(node)))).toEqual([]),
      60,
    );
  });
});
