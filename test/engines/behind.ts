import { expect } from "vitest";
import { eventually } from "../lifecycle/life.ts";
import { first, inNamespace, podOf } from "../pods/kube.ts";
import type { EngineNode } from "./node.ts";
import { copied, gvisor, podRuns, profile, runsAsBefore, settled } from "./profiles.ts";

type Behind = {
  /** The engine's id of the container. */
  id: string;
  /** Runs in it, by kubectl. */
  exec(...argv: string[]): Promise<string>;
};

/** A RuntimeClass, and from kubectl to a pod of it, its log and a command in it; `look` at it while it runs. */
export async function podBehind(
  node: EngineNode,
  handler: string,
  look: (pod: Behind) => Promise<void>,
): Promise<void> {
  const { apply, kubectl, ...ns } = inNamespace(node, "default");
  await apply({ apiVersion: "node.k8s.io/v1", kind: "RuntimeClass", metadata: { name: handler }, handler });
  const command = ["sh", "-c", "echo here I am; exec sleep 3600"];
  const image = `${node.registry}/bulkhead/test:1`;
  const pod = await ns.run(podOf(`by-${handler}`, handler, image, { command }, { nodeName: "node-1" }));
  expect(await kubectl(["logs", `by-${handler}`])).toBe("here I am\n");
  await look({
    id: first(pod)?.containerID.replace(/^.*:\/\//, "") ?? "",
    exec: (...argv) => ns.exec(`by-${handler}`, ...argv),
  });
  await ns.remove(`by-${handler}`);
  await kubectl(["delete", "runtimeclass", handler]);
}

/** Pods behind the copy of a shim, and behind gVisor whose overlay is in files of the node. */
export async function podsBehind(node: EngineNode): Promise<void> {
  const count = async (script: string): Promise<number> =>
    Number((await node.try(["sh", "-c", script])).stdout);
  const shims = "pgrep -fc [b]in/copied-shim";
  // CRI-O's shim of a pod ends when the kubelet removes what it has stopped, once a minute.
  const goneSeconds = 120;
  await eventually(async () => expect(await count(shims)).toBe(0), goneSeconds);
  await podBehind(node, "copied", async ({ exec }) => {
    expect(await exec("cat", "/proc/1/comm")).toBe("sleep\n");
    expect(await count(shims)).toBeGreaterThan(0);
  });
  await eventually(async () => expect(await count(shims)).toBe(0), goneSeconds);
  await podBehind(node, "overlaid", async ({ exec }) => {
    expect(await exec("sh", "-c", "echo kept >/written; cat /written; dmesg | head -1")).toMatch(
      /^kept\n.*gVisor/,
    );
    // The file is deleted as it is made: whoever has it open writes to it.
    expect(await count("ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c /var/lib/bulkhead-overlays/")).not.toBe(
      0,
    );
  });
}

/**
 * Beside the profile `walled`, which is there: a shim that nothing knows and gVisor with its overlay in files, pods of
 * each, and flags of runc, which such an engine cannot. The static pod does not notice.
 */
export async function servesAnyShim(
  node: EngineNode,
  walled: ReturnType<typeof profile>,
  artifacts: { gvisor: string; runc: string },
): Promise<void> {
  const before = await podRuns(node);
  await node.want([
    walled,
    copied("copied", "bbbbbbbbbb", artifacts.runc),
    gvisor("overlaid", "dddddddddd", artifacts.gvisor, { overlay: "directory" }),
    profile("flagged", "eeeeeeeeee", { handler: { runc: { flags: ["--debug"] } } }),
  ]);
  for (const name of ["copied", "overlaid"])
    await settled(node, name, { phase: "Ready", canary: { passed: true } });
  await settled(node, "flagged", { phase: "Failed", reason: "NotSupported" });
  await podsBehind(node);
  await runsAsBefore(node, before);
}
