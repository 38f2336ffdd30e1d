import { setTimeout as sleep } from "node:timers/promises";
import { installBulkhead } from "../cluster/bulkhead.ts";
import { type Cluster, type Progress, startCluster } from "../cluster/cluster.ts";
import { defaultDescription } from "../cluster/description.ts";

/**
 * `./dev demo`, after set-up: a real cluster, Bulkhead on it by helm, two profiles, and the same pod under each wall.
 */
export async function demo(
  progress: Progress,
  print: (text: string) => void,
  signal: AbortSignal,
): Promise<void> {
  const cluster = await startCluster(defaultDescription("demo", 1), { signal, progress });
  await installBulkhead(cluster, progress, signal);
  print("\nWhat the operator and the agent did on the way:\n");
  print(await events(cluster));
  const rows = await progress("start the same pod under each class", () => compare(cluster, signal));
  print(`\n${table(rows)}\n\n`);
  print(await cluster.kubectl(["get", "runtimeprofiles,noderuntimes,runtimeclasses"]));
  print("\nThe cluster runs on: ./dev kubectl …, ./dev shell node-1, ./dev status, ./dev down\n");
}

const events = (cluster: Cluster): Promise<string> =>
  cluster.kubectl([
    "get",
    "events.events.k8s.io",
    "--all-namespaces",
    "--field-selector",
    "regarding.apiVersion=bulkhead.dev/v1alpha1",
    "-o",
    "custom-columns=TIME:.metadata.creationTimestamp,OBJECT:.regarding.kind,NAME:.regarding.name,REASON:.reason,MESSAGE:.note",
    "--sort-by=.metadata.creationTimestamp",
  ]);

type Row = {
  class: string;
  engine: string;
  handler: string;
  kernel: string;
  seconds: string;
  memory: string;
};

/** The same pod under containerd's default class, `standard` and `sandboxed`, one after the other. */
async function compare(cluster: Cluster, signal: AbortSignal): Promise<Row[]> {
  const rows: Row[] = [];
  for (const runtimeClass of [undefined, "standard", "sandboxed"]) {
    const name = `demo-${runtimeClass ?? "default"}`;
    await cluster.kubectl(["delete", "pod", name, "--ignore-not-found", "--grace-period=0", "--force"]);
    const began = performance.now();
    await cluster.kubectl(["apply", "-f", "-"], {
      input: JSON.stringify(pod(name, runtimeClass, cluster.registry)),
    });
    await cluster.kubectl(["wait", "--for=condition=Ready", `pod/${name}`, "--timeout=120s"]);
    const seconds = (performance.now() - began) / 1000;
    await sleep(1500, undefined, { signal });
    const memory = await memoryOf(cluster, name);
    rows.push({
      class: runtimeClass ?? "(default)",
      engine: runtimeClass === undefined ? "containerd" : "bulkhead",
      handler: runtimeClass === "sandboxed" ? "gVisor" : "runc",
      kernel: (await cluster.kubectl(["exec", name, "--", "uname", "-rv"])).trim().slice(0, 48),
      seconds: seconds.toFixed(1),
      memory: `${(memory / 1024).toFixed(0)} MiB`,
    });
  }
  return rows;
}

const pod = (name: string, runtimeClassName: string | undefined, registry: string) => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name, labels: { app: "bulkhead-demo" } },
  spec: {
    ...(runtimeClassName && { runtimeClassName }),
    automountServiceAccountToken: false,
    terminationGracePeriodSeconds: 1,
    containers: [{ name: "main", image: `${registry}/bulkhead/test:1`, command: ["sleep", "1000000"] }],
  },
});

/**
 * What a pod costs on the node, in KiB: the proportional set size of every process that is in its cgroup or names one
 * of its ids, which are its containers, pause, monitors, shims and sandboxes.
 */
async function memoryOf(cluster: Cluster, pod: string): Promise<number> {
  const { metadata, status } = JSON.parse(await cluster.kubectl(["get", "pod", pod, "-o", "json"])) as {
    metadata: { uid: string };
    status: { containerStatuses: { containerID: string }[] };
  };
  const node = cluster.nodes[0];
  const container = status.containerStatuses[0]?.containerID.replace(/^.*:\/\//, "") ?? "";
  const sandbox = await node
    ?.exec([
      "crictl",
      "--runtime-endpoint=unix:///run/bulkhead/cri.sock",
      "inspect",
      "-o",
      "go-template",
      "--template",
      "{{.info.sandboxID}}",
      container,
    ])
    .catch(() => "");
  const ids = [metadata.uid, container, sandbox?.trim()].filter((id) => id && /^[0-9a-f-]{36,64}$/.test(id));
  const out = await node?.exec([
    "sh",
    "-c",
    `for p in /proc/[0-9]*; do
       { tr '\\0' ' ' < $p/cmdline; cat $p/cgroup; } 2>/dev/null | grep -qE '${ids.join("|")}' && cat $p/smaps_rollup 2>/dev/null
     done | awk '/^Pss:/ { sum += $2 } END { print sum + 0 }'`,
  ]);
  return Number(out);
}

/** Columns as wide as their widest cell. */
function table(rows: Row[]): string {
  const header: Row = {
    class: "CLASS",
    engine: "ENGINE",
    handler: "HANDLER",
    kernel: "KERNEL SEEN",
    seconds: "SECONDS",
    memory: "MEMORY",
  };
  const all = [header, ...rows];
  const keys = Object.keys(header) as (keyof Row)[];
  const width = (key: keyof Row): number => Math.max(...all.map((row) => row[key].length));
  return all
    .map((row) =>
      keys
        .map((key) => row[key].padEnd(width(key)))
        .join("   ")
        .trimEnd(),
    )
    .join("\n");
}
