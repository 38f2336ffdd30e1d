import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Spec } from "../../spec/oci.ts";
import { type CgroupLayout, cgroupAt, parentOf } from "../../stats/layout.ts";

const nameOf = (pageMiB: number): string => (pageMiB < 1024 ? `${pageMiB}M` : `${pageMiB / 1024}G`);

/** MiB of pages of this size that the cgroup may have; undefined where nothing says so. */
const limitOf = (path: string, pageMiB: number, layout: CgroupLayout): number | undefined => {
  const dirs = cgroupAt(path, layout);
  const dir = layout.version === 2 ? dirs[""] : dirs.hugetlb;
  if (dir === undefined) return undefined;
  const file = `hugetlb.${nameOf(pageMiB)}B.${layout.version === 2 ? "max" : "limit_in_bytes"}`;
  try {
    const text = readFileSync(join(dir, file), "utf8").trim();
    return text === "max" ? undefined : Number(text) / 2 ** 20;
  } catch {
    // No such cgroup, as under a client that makes none, or no such controller.
    return undefined;
  }
};

/**
 * Throws for a pod whose machine is made of more huge pages than the pod's cgroup may have (kernel hugetlb.rst): its
 * hypervisor would end, and the shim answer nothing until the deadline. `spec` is the sandbox's.
 */
export const requireHugepages = (
  kata: Pick<NonNullable<ShimHandlerConfig["kata"]>, "hugepages"> | undefined,
  spec: Pick<Spec, "annotations" | "linux">,
  layout: CgroupLayout,
): void => {
  if (kata?.hugepages === undefined) return;
  const { pageMiB, machineMiB } = kata.hugepages;
  const pod = parentOf(spec.linux?.cgroupsPath);
  const limit = pod === undefined ? undefined : limitOf(pod, pageMiB, layout);
  const asked = Number(spec.annotations?.["io.kubernetes.cri.sandbox-memory"] ?? 0) / 2 ** 20;
  // A pod may choose its machine's memory itself, where the profile lets it.
  const own = spec.annotations?.["io.katacontainers.config.hypervisor.default_memory"];
  const machine = own === undefined ? machineMiB : Number(own);
  if (limit === undefined || !(machine + asked > limit)) return;
  const resource = `hugepages-${nameOf(pageMiB)}i`;
  throw new RuntimeError(
    "failed-precondition",
    `Cannot run the pod in a machine of huge pages: it takes ${machine + asked} MiB of them (${machine} of the profile's, ${asked} for the pod's memory limit), and the pod's cgroup may have ${limit} MiB: let containers with a memory limit ask for as much of ${resource}`,
  );
};
