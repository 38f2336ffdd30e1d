import { expect, test } from "vitest";
import { eventually } from "../lifecycle/life.ts";
import type { EngineNode } from "./node.ts";
import { pidOf, podRuns, profile, runsAsBefore, settled } from "./profiles.ts";

/** By which name an engine is reported, and the unit that runs it. */
type Fronted = { name: string; unit: string };

/**
 * Bulkhead's runtime comes before an engine that serves the profile `walled`, and goes again: the same tests for each
 * engine. They stand on each other in this order.
 */
export function frontedTests(of: () => EngineNode, { name, unit }: Fronted): void {
  const ours = ["--runtime-endpoint=unix:///run/bulkhead/cri.sock", "--timeout=60s"];
  const crictl = (...argv: string[]) => of().exec(["crictl", ...ours, ...argv]);

  test("is fronted by Bulkhead's runtime, and serves its own profiles and pods behind it", async () => {
    const node = of();
    const before = await podRuns(node);
    await node.want([
      profile("walled", "aaaaaaaaaa"),
      profile("fronted", "bbbbbbbbbb", { engine: "bulkhead" }),
    ]);
    await settled(node, "fronted", { phase: "Ready", canary: { passed: true } }, 120);
    await settled(node, "walled", { phase: "Ready" });
    await eventually(async () =>
      expect((await node.report()).status.engine).toMatchObject({ name, fronted: true }),
    );
    expect(await node.exec(["cat", "/etc/kubernetes/kubelet.yaml"])).toContain("/run/bulkhead/cri.sock");
    const id = before.split(" ")[0] ?? "";
    expect(await crictl("ps", "-q", "--no-trunc")).toContain(id);
    await runsAsBefore(node, before);
    const image = `${node.registry}/bulkhead/test:1`;
    expect(await crictl("exec", "-s", id, "echo", image)).toContain(image);
  });

  test("starts behind it what the kubelet asks for, streams from it, and counts it", async () => {
    const node = of();
    const manifest = "/etc/kubernetes/manifests/later.json";
    const pod = (await node.exec(["cat", "/etc/kubernetes/manifests/counter.json"])).replace(
      "counter",
      "later",
    );
    await node.exec(["sh", "-c", `printf %s "$1" >${manifest}`, "sh", pod]);
    const id = await eventually(async () => {
      const found = await crictl("ps", "-q", "--no-trunc", "--label", "io.kubernetes.pod.name=later-node-1");
      expect(found.trim()).toMatch(/^[0-9a-f]{64}$/);
      return found.trim();
    }, 30);
    // The engine's own socket knows it: it is not ours.
    expect(await node.exec(["crictl", "ps", "-q", "--no-trunc"])).toContain(id);
    expect(await crictl("exec", id, "cat", "/etc/hostname")).toContain("later");
    expect((await crictl("exec", "-i", id, "sh", "-c", "exit 0")).trim()).toBe("");
    await eventually(async () => expect(await crictl("logs", "--tail=1", id)).toMatch(/^\d+\n$/), 10);
    expect(await crictl("stats", "-o", "json", "--id", id)).toContain(id);
    await node.exec(["rm", manifest]);
    await eventually(async () => expect(await crictl("ps", "-aq", "--no-trunc")).not.toContain(id), 30);
  });

  test("may be killed behind it: its pods are the same when it is back", async () => {
    const node = of();
    const before = await podRuns(node);
    const pid = await pidOf(node, unit);
    await node.exec(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", unit]);
    expect(await crictl("ps", "-q", "--no-trunc")).toContain(before.split(" ")[0]);
    await eventually(async () => {
      const now = await pidOf(node, unit);
      expect(now).not.toBe(pid);
      expect(now).not.toBe("0");
    }, 20);
    await runsAsBefore(node, before);
    expect(await crictl("ps", "-q", "--no-trunc")).toContain(before.split(" ")[0]);
  });

  test("is the kubelet's again when Bulkhead's runtime has no profile left, and keeps its own", async () => {
    const node = of();
    const before = await podRuns(node);
    await node.want([profile("walled", "aaaaaaaaaa")]);
    await eventually(async () => expect((await node.try(["ls", "/run/bulkhead"])).code).not.toBe(0), 90);
    expect(await node.exec(["cat", "/etc/kubernetes/kubelet.yaml"])).not.toContain("bulkhead");
    await settled(node, "walled", { phase: "Ready" });
    await eventually(async () =>
      expect((await node.report()).status.engine).toMatchObject({ fronted: false }),
    );
    await runsAsBefore(node, before);
  });
}
