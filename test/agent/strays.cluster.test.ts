import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "vitest";
import { bulkheadCluster } from "../cluster/bulkhead.ts";
import { type Cluster, type Node, until } from "../cluster/cluster.ts";
import { first, inNamespace, type Namespace, podOf } from "../pods/kube.ts";

/**
 * Containers that the kubelet does not know, as a person's crictl makes them: it ends and removes them, and with each the
 * files whose names begin with its log path. An empty one stands for the node's root.
 */

let cluster: Cluster;
let node: Node;
let ns: Namespace;
/** An image by its name, and by the reference that the kubelet gives it: handler → image. */
let name: string;
const images = new Map<string, string>();
const at = "/run/strays";

beforeAll(async () => {
  cluster = await bulkheadCluster();
  node = cluster.node("node-1");
  name = `${cluster.registry}/bulkhead/test:1`;
  ns = inNamespace(cluster, "strays");
  await ns.create();
  for (const handler of ["", "standard"]) {
    const pod = await ns.run(
      podOf(`beside${handler}`, handler || undefined, name, {}, { nodeName: node.name }),
    );
    images.set(handler, first(pod)?.imageID ?? "");
  }
});
afterAll(async () => {
  await node?.exec(["rm", "-rf", at]);
  await ns?.destroy();
});

const entries = () => node.exec(["find", "/", "-maxdepth", "1", "-printf", "%p %y %l\\n"]);
const crictl = (...args: string[]) =>
  node.try(["crictl", "--runtime-endpoint", "unix:///run/bulkhead/cri.sock", ...args]);

/** A container that runs, and the log path that it is told to have. */
const stray = async (handler: string): Promise<{ id: string; podId: string; logPath: string }> => {
  const metadata = { name: "stray", namespace: "nowhere", uid: randomUUID(), attempt: 0 };
  const labels = {
    "io.kubernetes.pod.uid": metadata.uid,
    "io.kubernetes.pod.name": metadata.name,
    "io.kubernetes.pod.namespace": metadata.namespace,
    "io.kubernetes.container.name": "main",
  };
  const pod = { metadata, labels, linux: {} };
  const container = {
    ...{ metadata: { name: "main", attempt: 0 }, labels, linux: {} },
    image: { image: images.get(handler), user_specified_image: name },
    command: ["sleep", "3600"],
  };
  const script = `mkdir -p ${at} && cd ${at} && printf %s "$1" >pod && printf %s "$2" >container
    crictl() { /usr/local/bin/crictl --runtime-endpoint unix:///run/bulkhead/cri.sock "$@"; }
    pod=$(crictl runp --runtime="$3" pod)
    id=$(crictl create $pod container pod)
    path=$(crictl inspect -o go-template --template '{{.status.logPath}}' $id)
    crictl start $id >/dev/null
    echo $id $pod $path`;
  const argv = ["sh", "-ec", script, "sh", JSON.stringify(pod), JSON.stringify(container), handler];
  const [id = "", podId = "", logPath = ""] = (await node.exec(argv)).trim().split(" ");
  return { id, podId, logPath };
};

test.each([
  ["of Bulkhead's", "standard"],
  ["of the engine behind it", ""],
])("a container %s without a log is removed, and nothing else with it", async (_, handler) => {
  const root = await entries();
  let made: Awaited<ReturnType<typeof stray>> | undefined;
  // The kubelet looks every two seconds and may end the pod before its container has come up.
  await until(AbortSignal.timeout(60_000), 30_000, "a container to run", async () => {
    made = await stray(handler);
    return true;
  });
  const { id = "", podId = "", logPath } = made ?? {};
  expect(logPath).toBe("/run/bulkhead/no-log");
  await until(AbortSignal.timeout(120_000), 90_000, "the kubelet to remove the container", async () => {
    const { code, stderr } = await crictl("inspect", id);
    if (code !== 0 && /not ?found/i.test(stderr)) return true;
    throw new Error(`exit code ${code}: ${stderr}`);
  });
  expect(await entries()).toBe(root);
  await crictl("rmp", "-f", podId);
});
