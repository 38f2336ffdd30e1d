import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { ensureTestImages } from "../images/build.ts";
import { type Cluster, type Progress, until } from "./cluster.ts";
import { pushImages } from "./push-images.ts";
import { agentsSettled } from "./settled.ts";
import { sharedCluster } from "./shared.ts";

const repository = join(import.meta.dirname, "../..");

/** Where the chart is installed. */
export const namespace = "bulkhead-system";
/** The profiles of examples/ that the demo and the tests apply. */
export const profiles = ["standard", "sandboxed"] as const;

/** `helm upgrade --install` of the chart, as the README says, and waits until it runs everywhere. */
export async function installChart(
  cluster: Cluster,
  tag: string,
  signal?: AbortSignal,
  values: readonly string[] = [],
): Promise<void> {
  // Helm installs CRDs and never upgrades them; an agent cannot report what the API server has no field for.
  await cluster.kubectl(
    [...["apply", "--server-side", "--force-conflicts"], ...["-f", join(repository, "charts/bulkhead/crds")]],
    { signal },
  );
  await cluster.helm(
    [
      "upgrade",
      "--install",
      "bulkhead",
      join(repository, "charts/bulkhead"),
      "--namespace",
      namespace,
      "--create-namespace",
      // They stand already, and Helm 4 would argue with kubectl over whose they are.
      "--skip-crds",
      "--set",
      `image.registry=${cluster.registry}`,
      "--set",
      `image.tag=${tag}`,
      ...values.flatMap((value) => ["--set", value]),
      "--wait",
      "--timeout",
      "3m",
    ],
    { signal },
  );
}

/** Applies the profiles of examples/ and waits until each is Ready, with the agents that run now. */
export async function applyProfiles(
  cluster: Cluster,
  names: readonly string[] = profiles,
  signal = new AbortController().signal,
): Promise<void> {
  for (const name of names)
    await cluster.kubectl(["apply", "-f", "-"], {
      input: await readFile(join(repository, "examples", `${name}.yaml`), "utf8"),
    });
  await Promise.all(names.map((name) => profileReady(cluster, name, signal)));
  await agentsSettled(cluster, namespace, names, signal);
}

/** Waits until a profile is Ready for its present generation; when it is not, the error shows its conditions. */
export const profileReady = (
  cluster: Cluster,
  name: string,
  signal = new AbortController().signal,
  seconds = 180,
): Promise<void> =>
  until(signal, seconds * 1000, `profile ${name} to be Ready`, async () => {
    const { metadata, status } = JSON.parse(
      await cluster.kubectl(["get", "runtimeprofile", name, "-o", "json"]),
    ) as {
      metadata: { generation: number };
      status?: {
        observedGeneration?: number;
        conditions?: { type: string; status: string; message: string }[];
      };
    };
    const ready = status?.conditions?.find(({ type }) => type === "Ready");
    if (ready?.status === "True" && status?.observedGeneration === metadata.generation) return true;
    throw new Error(JSON.stringify(status?.conditions ?? "no status yet"));
  });

/** All of it, from images to Ready profiles. What is there already stays. */
export async function installBulkhead(
  cluster: Cluster,
  progress: Progress,
  signal?: AbortSignal,
  values?: readonly string[],
): Promise<void> {
  const tag = await progress("build the images and push them to the registry", async () => {
    await ensureTestImages(`http://${cluster.registry}`, ["bulkhead/test:1"]);
    return pushImages(cluster.registry, signal);
  });
  await progress("helm install charts/bulkhead", () => installChart(cluster, tag, signal, values));
  await progress("apply examples/standard.yaml and examples/sandboxed.yaml, wait for Ready", () =>
    applyProfiles(cluster, profiles, signal),
  );
}

/** Where a test that wants the traces of {@link bulkheadCluster} listens; most of the time nobody does. */
export const tracesPort = 4318;

/** The shared cluster of the tests with Bulkhead on it. The first test file that asks pays for it. */
export async function bulkheadCluster(): Promise<Cluster> {
  const cluster = await sharedCluster();
  await installBulkhead(cluster, (_title, work) => work(), undefined, [
    `tracing.endpoint=http://${cluster.plan.address}:${tracesPort}`,
  ]);
  return cluster;
}
