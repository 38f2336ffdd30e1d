import { expect } from "vitest";
import { first, inNamespace, podOf } from "../pods/kube.ts";
import type { EngineNode } from "./node.ts";

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
