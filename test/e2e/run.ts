import { spawn } from "node:child_process";
import { createWriteStream } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Cluster } from "../cluster/cluster.ts";
import type { ClusterDescription } from "../cluster/description.ts";
import { ensureE2eImages } from "../images/build.ts";
import { tool } from "../tools/cache.ts";
import { type Result, resultsOf } from "./report.ts";

/** The engines that the suite is run on. */
export const engines = ["bulkhead", "containerd"] as const;
/** One of {@link engines}. */
export type Engine = (typeof engines)[number];

/** Two nodes: specs of the pod network start a pod on each. */
export const e2eDescription = (name: string, engine: Engine): ClusterDescription => ({
  name,
  nodes: ["node-1", "node-2"].map((node) => ({ name: node, engine })),
});

/** What to run of the suite. */
export type Selection = {
  /** Regular expressions over a spec's whole name, as ginkgo takes them. */
  focus: readonly string[];
  skip?: readonly string[];
  /** Processes side by side. Specs wait more than they work. */
  procs: number;
  /** How long the whole run may take, as ginkgo writes it: what runs then fails, what did not begin is left out. */
  timeout?: string;
  /** Where ginkgo's own report (JSON) is kept; nowhere without. */
  report?: string;
  /** Where its output goes: a file, or this terminal. */
  log?: string;
};

/**
 * Runs specs of upstream's end-to-end suite (k8s.io/kubernetes/test/e2e) against a cluster and returns what came of
 * each. The images that it names come from the cluster's registry.
 */
export const runSpecs = async (
  cluster: Cluster,
  selection: Selection,
  signal: AbortSignal,
): Promise<Result[]> => {
  await ensureE2eImages(`http://${cluster.registry}`);
  const scratch = await mkdtemp(join(tmpdir(), "bulkhead-e2e-"));
  try {
    const registries = join(scratch, "registries.yaml");
    await writeFile(registries, registryList(cluster.registry));
    const report = selection.report ?? join(scratch, "report.json");
    const said = await ginkgo(cluster, selection, { registries, report }, signal);
    const text = await readFile(report, "utf8").catch(() => undefined);
    if (text === undefined)
      throw new RuntimeError("unknown", `Cannot find the suite's report: it ended with ${said}`);
    return resultsOf(text);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
};

/** KUBE_TEST_REPO_LIST: the registries that are here. Specs want the others (private, invalid) not to answer. */
const registryList = (registry: string): string =>
  [`promoterE2eRegistry: ${registry}/e2e-test-images`, `gcRegistry: ${registry}`, ""].join("\n");

const ginkgo = (
  cluster: Cluster,
  { focus, skip = [], procs, timeout = "3h", log }: Selection,
  { registries, report }: { registries: string; report: string },
  signal: AbortSignal,
): Promise<number> => {
  const argv = [
    ...[
      "--procs",
      `${procs}`,
      "--no-color",
      "--timeout",
      timeout,
      "--silence-skips",
      "--json-report",
      report,
    ],
    ...focus.flatMap((each) => ["--focus", each]),
    ...skip.flatMap((each) => ["--skip", each]),
    tool("e2e.test"),
    "--",
    ...["--provider=skeleton", `--kubeconfig=${cluster.kubeconfig}`],
    `--kubectl-path=${tool("kubectl")}`,
  ];
  return new Promise((resolve, reject) => {
    const child = spawn(tool("ginkgo"), argv, {
      // Its end-of-run files land where it runs.
      cwd: tmpdir(),
      stdio: ["ignore", log === undefined ? "inherit" : "pipe", log === undefined ? "inherit" : "pipe"],
      env: { ...process.env, KUBECONFIG: cluster.kubeconfig, KUBE_TEST_REPO_LIST: registries },
      signal,
    });
    if (log !== undefined) {
      const file = createWriteStream(log);
      child.stdout?.pipe(file, { end: false });
      child.stderr?.pipe(file, { end: false });
      child.on("close", () => file.end());
    }
    child.on("error", reject).on("close", (code) => resolve(code ?? 1));
  });
};
