import { expect } from "vitest";
import { first, inNamespace, podOf } from "../pods/kube.ts";
import type { EngineNode } from "./node.ts";

/** A RuntimeClass, and from kubectl to a pod of it behind gVisor's kernel: log, exec, network, a container beside. */
export async function podBehindGvisor(node: EngineNode, handler: string): Promise<void> {
  const { apply, kubectl, ...ns } = inNamespace(node, "default");
  await apply({ apiVersion: "node.k8s.io/v1", kind: "RuntimeClass", metadata: { name: handler }, handler });
  const image = `${node.registry}/bulkhead/test:1`;
  const script = "dmesg; echo here I am; exec httpd -f -p 8080 -h /etc";
  const beside = { name: "beside", image, command: ["sleep", "3600"] };
  const main = { name: "main", image, command: ["sh", "-c", script] };
  const pod = await ns.run(
    podOf("walled", handler, image, {}, { nodeName: "node-1", containers: [main, beside] }),
  );
  expect(await kubectl(["logs", "walled", "-c", "main"])).toMatch(/gVisor.*here I am\n$/s);
  const exec = (container: string, ...argv: string[]): Promise<string> =>
    kubectl(["exec", "walled", "-c", container, "--", ...argv]);
  expect(await exec("main", "dmesg")).toContain("gVisor");
  const url = `http://${pod.status.podIP}:8080/passwd`;
  const fetched = "fetch(process.argv[1]).then((r) => r.text()).then(console.log)";
  expect(await node.exec(["/app/node", "-e", fetched, url])).toContain("root");
  expect(await exec("beside", "dmesg")).toContain("gVisor");
  // By the loopback interface that they share.
  expect(await exec("beside", "wget", "-qO-", "http://127.0.0.1:8080/passwd")).toContain("root");
  expect(first(pod)?.restartCount).toBe(0);
  await ns.remove("walled");
  await kubectl(["delete", "runtimeclass", handler]);
}
