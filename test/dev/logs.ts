import { spawn } from "node:child_process";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { components, logOf } from "../cluster/control-plane.ts";
import { tool } from "../tools/cache.ts";

/** systemd units of a node, by the name that a person calls them. */
const units = {
  kubelet: "kubelet.service",
  containerd: "containerd.service",
  "bulkhead-runtime": "bulkhead-runtime.service",
} as const;

/** Programs that run as pods, by their kubectl name. */
const workloads = {
  operator: "deployment/bulkhead-operator",
  "node-agent": "daemonset/bulkhead-node-agent",
} as const;

/** Everything that `./dev logs` can show. */
export const logNames = [...components, ...Object.keys(units), ...Object.keys(workloads)];

export type LogOptions = { follow: boolean; node?: string };

/** Shows the log of a component on this terminal. Returns the exit code of what showed it. */
export const showLogs = (cluster: Cluster, name: string, options: LogOptions): Promise<number> => {
  const follow = options.follow ? ["-f"] : [];
  const component = components.find((each) => each === name);
  if (component !== undefined)
    return inherit(["tail", "-n", options.follow ? "50" : "+1", ...follow, logOf(cluster.plan, component)]);
  if (Object.hasOwn(units, name)) {
    const unit = units[name as keyof typeof units];
    return nodeOf(cluster, options.node).shell(["journalctl", "--no-pager", "-u", unit, ...follow]);
  }
  if (Object.hasOwn(workloads, name)) {
    const workload = workloads[name as keyof typeof workloads];
    return inherit(
      [
        ...[tool("kubectl"), "-n", "bulkhead-system", "logs", workload],
        ...["--all-containers", "--prefix", "--tail=-1", ...follow],
      ],
      { KUBECONFIG: cluster.kubeconfig },
    );
  }
  throw new RuntimeError(
    "invalid-argument",
    `Cannot show the log of "${name}": it is one of ${logNames.join(", ")}`,
  );
};

/** A node by name, or the first one. */
export const nodeOf = (cluster: Cluster, name?: string) =>
  name === undefined ? cluster.nodes[0]! : cluster.node(name);

/** Runs a program on this terminal. */
export const inherit = (argv: readonly string[], env: Record<string, string> = {}): Promise<number> =>
  new Promise((resolve, reject) => {
    const [program = "", ...args] = argv;
    spawn(program, args, { stdio: "inherit", env: { ...process.env, ...env } })
      .on("error", reject)
      .on("close", (code) => resolve(code ?? 1));
  });
