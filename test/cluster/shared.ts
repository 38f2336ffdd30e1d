import { type Cluster, startCluster } from "./cluster.ts";
import type { ClusterDescription } from "./description.ts";

/** Logs rotate within a test's patience; 3 s is the shortest interval that the kubelet takes. */
const kubelet = { containerLogMaxSize: "100Ki", containerLogMonitorInterval: "3s" };

/**
 * The cluster that all cluster tests of a run share: two nodes. BULKHEAD_TEST_CLUSTER names another one than "test",
 * for runs side by side.
 */
export const sharedDescription: ClusterDescription = {
  name: process.env.BULKHEAD_TEST_CLUSTER || "test",
  nodes: [
    { name: "node-1", engine: "containerd", kubelet, labels: { "bulkhead.dev/test": "one" } },
    { name: "node-2", engine: "containerd", kubelet, labels: { "bulkhead.dev/test": "two" } },
  ],
};

/**
 * The shared cluster: started by the first test file that asks, found running by the others. Tests use namespaces
 * of their own and leave nothing behind. test/cluster/global-setup.ts takes it down after the run.
 */
export const sharedCluster = (): Promise<Cluster> => startCluster(sharedDescription);
