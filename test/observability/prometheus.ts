import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { copyFile, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { dump } from "js-yaml";
import { namespace } from "../cluster/bulkhead.ts";
import { pki } from "../cluster/certificates.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { apiUrl } from "../cluster/plan.ts";
import { debianProgram, debianPrograms } from "../tools/debian.ts";
import { freePort } from "../tools/free-port.ts";
import { rulesFile } from "./panels.ts";

export type Sample = { metric: Record<string, string>; value: [number, string] };

/** A real Prometheus beside the cluster; it scrapes what the chart's annotations ask for. */
export type Prometheus = AsyncDisposable & {
  query(expr: string): Promise<Sample[]>;
  get<T>(path: string): Promise<T>;
};

type Service = {
  metadata: { annotations?: Record<string, string> };
  spec: { selector: Record<string, string> };
};
type Target = { targets: string[]; labels: Record<string, string> };

/**
 * What a Prometheus in the cluster finds by the chart's annotations. Debian's is built without Kubernetes discovery, so
 * this follows them in its place; the way in is the API server's proxy.
 */
const annotated = async (cluster: Cluster, host: string): Promise<Target[]> => {
  const list = async <T>(...argv: string[]): Promise<T[]> =>
    (JSON.parse(await cluster.kubectl(["get", ...argv, "-n", namespace, "-o", "json"])) as { items: T[] })
      .items;
  const found: Target[] = [];
  for (const { metadata, spec } of await list<Service>("services")) {
    const { "prometheus.io/scrape": scrape, "prometheus.io/port": port } = metadata.annotations ?? {};
    if (scrape !== "true") continue;
    const selector = Object.entries(spec.selector).map(([key, value]) => `${key}=${value}`);
    for (const pod of await list<{ metadata: { name: string } }>("pods", "-l", selector.join(",")))
      found.push({
        targets: [host],
        labels: {
          instance: pod.metadata.name,
          __metrics_path__: `/api/v1/namespaces/${namespace}/pods/${pod.metadata.name}:${port}/proxy/metrics`,
        },
      });
  }
  return found;
};

const configuration = async (cluster: Cluster): Promise<object> => {
  const { ca, admin } = pki(cluster.plan);
  const { host } = new URL(apiUrl(cluster.plan));
  const through = {
    scheme: "https",
    tls_config: { ca_file: ca.cert, cert_file: admin.cert, key_file: admin.key },
  };
  return {
    global: { scrape_interval: "2s", evaluation_interval: "2s" },
    rule_files: ["rules.yaml"],
    scrape_configs: [
      { job_name: "apiserver", ...through, static_configs: [{ targets: [host] }] },
      {
        job_name: "bulkhead",
        ...through,
        honor_labels: true,
        static_configs: await annotated(cluster, host),
      },
    ],
  };
};

export const startPrometheus = async (cluster: Cluster): Promise<Prometheus> => {
  await using undo = new AsyncDisposableStack();
  const directory = await mkdtemp(join(tmpdir(), "bh-prometheus-"));
  undo.defer(() => rm(directory, { recursive: true }));
  await copyFile(rulesFile, join(directory, "rules.yaml"));
  await writeFile(join(directory, "prometheus.yaml"), dump(await configuration(cluster)));
  const program = await debianProgram(debianPrograms.prometheus.pkg, debianPrograms.prometheus.path);
  const port = await freePort();
  const child: ChildProcess = spawn(
    "setpriv",
    [
      ...["--pdeathsig", "KILL", "--", program, `--config.file=${join(directory, "prometheus.yaml")}`],
      ...[
        `--storage.tsdb.path=${directory}/data`,
        `--web.listen-address=127.0.0.1:${port}`,
        "--log.level=warn",
      ],
    ],
    { stdio: ["ignore", "ignore", "inherit"] },
  );
  undo.defer(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  });
  const get = async <T>(path: string): Promise<T> => {
    const answer = await fetch(`http://127.0.0.1:${port}${path}`, { signal: AbortSignal.timeout(10_000) });
    const body = (await answer.json()) as { status: string; error?: string; data: T };
    if (body.status !== "success") throw new Error(`Cannot get ${path}: ${body.error}`);
    return body.data;
  };
  const down = undo.move();
  return {
    get,
    query: async (expr) =>
      (await get<{ result: Sample[] }>(`/api/v1/query?query=${encodeURIComponent(expr)}`)).result,
    [Symbol.asyncDispose]: () => down.disposeAsync(),
  };
};
