import { readFile, writeFile } from "node:fs/promises";
import { get } from "../cluster/api.ts";
import { kubeconfig, pki } from "../cluster/certificates.ts";
import { until, well } from "../cluster/cluster.ts";
import { controlPlane } from "../cluster/control-plane.ts";
import { apiUrl, type ClusterPlan } from "../cluster/plan.ts";
import { startDaemon } from "../cluster/process.ts";
import { tool } from "../tools/cache.ts";
import { debianProgram, debianPrograms } from "../tools/debian.ts";
import { type RunOptions, run } from "../tools/run.ts";

/**
 * An API server without controllers and scheduler: pods name their node, and use the namespace `default` without the
 * API's credentials. Its processes are the plan's cluster's. Resolves to kubectl.
 */
export async function startApi(
  plan: ClusterPlan,
  signal: AbortSignal,
): Promise<(argv: readonly string[], options?: RunOptions) => Promise<string>> {
  const { pkg, path } = debianPrograms.etcd;
  const daemons = controlPlane(plan, { etcd: await debianProgram(pkg, path, signal), registry: "" });
  for (const component of ["etcd", "kube-apiserver"] as const) {
    await startDaemon(plan.name, daemons[component]);
    await well(plan, component, signal);
  }
  const at = pki(plan);
  const [ca = "", cert = "", key = ""] = await Promise.all(
    [at.ca.cert, at.admin.cert, at.admin.key].map((file) => readFile(file, "utf8")),
  );
  const KUBECONFIG = `${plan.disk}/kubeconfig`;
  await writeFile(KUBECONFIG, kubeconfig(plan, "admin", { ca, cert, key }), { mode: 0o600 });
  const kubectl = (argv: readonly string[], options: RunOptions = {}): Promise<string> =>
    run([tool("kubectl"), ...argv], { ...options, env: { KUBECONFIG, ...options.env } });
  await until(signal, 60_000, "the default namespace", async () => {
    const { status } = await get(plan, `${apiUrl(plan)}/api/v1/namespaces/default`);
    return status === 200;
  });
  await kubectl(["create", "serviceaccount", "default"]);
  return kubectl;
}
