import type { HandlerConfig, ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import type { ContainerConfig, PodSandboxConfig } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

const prefix = "io.kubernetes.cri";

/** Does `name` match the glob `pattern` (only * is special)? */
const matches = (pattern: string, name: string): boolean =>
  new RegExp(
    `^${pattern
      .split("*")
      .map((part) => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&"))
      .join(".*")}$`,
  ).test(name);

/** Annotations of the pod and container that the handler lets through to the runtime. */
export const passedAnnotations = (
  allowed: readonly string[],
  ...sources: Readonly<Record<string, string>>[]
): Record<string, string> =>
  Object.fromEntries(
    sources
      .flatMap((source) => Object.entries(source))
      // Our own prefix tells shims who is who, and CRIU's names files of the node: a pod must not write them.
      .filter(([key]) => !/^(io\.kubernetes\.cri|org\.criu)\./.test(key))
      .filter(([key]) => allowed.some((pattern) => matches(pattern, key))),
  );

/** All that gVisor takes from annotations begins so: flags, mounts, the root file system, its cgroup. */
const gvisorPrefix = "dev.gvisor.";

/**
 * Throws for an annotation that would change a pod's sandbox and that its profile does not allow. Left out without a
 * word, the pod would run in another sandbox than the one that it asked for.
 */
export const requireAllowed = (
  handler: Pick<HandlerConfig, "name" | "allowedAnnotations"> & { runsc?: unknown },
  annotations: Readonly<Record<string, string>>,
): void => {
  if (handler.runsc === undefined) return;
  const refused = Object.keys(annotations)
    .filter((key) => key.startsWith(gvisorPrefix))
    .filter((key) => !handler.allowedAnnotations.some((pattern) => matches(pattern, key)));
  if (refused.length === 0) return;
  const allowed = handler.allowedAnnotations.join(", ") || "none";
  throw new RuntimeError(
    "permission-denied",
    `Cannot run the pod with annotation "${refused[0]?.slice(0, 128)}": the profile of handler "${handler.name}" does not let a pod set it (handler.gvisor.tenant; allowed: ${allowed})`,
  );
};

const podAnnotations = (podId: string, pod: PodSandboxConfig): Record<string, string> => {
  const resources = pod.linux?.resources;
  return {
    [`${prefix}.sandbox-id`]: podId,
    [`${prefix}.sandbox-name`]: pod.metadata?.name ?? "",
    [`${prefix}.sandbox-namespace`]: pod.metadata?.namespace ?? "",
    [`${prefix}.sandbox-uid`]: pod.metadata?.uid ?? "",
    [`${prefix}.sandbox-log-directory`]: pod.logDirectory,
    ...(resources && {
      [`${prefix}.sandbox-cpu-period`]: String(resources.cpuPeriod),
      [`${prefix}.sandbox-cpu-quota`]: String(resources.cpuQuota),
      [`${prefix}.sandbox-cpu-shares`]: String(resources.cpuShares),
      [`${prefix}.sandbox-memory`]: String(resources.memoryLimitInBytes),
    }),
  };
};

/** What Kata is to be told of a pod's size. */
type Machine = Pick<NonNullable<ShimHandlerConfig["kata"]>, "hugepages" | "withoutLimit">;

const cpuPeriod = 100_000;

/** The limits of a pod as its virtual machine is to be made for them. */
const sizeOf = (pod: PodSandboxConfig, { hugepages, withoutLimit }: Machine): Record<string, string> => {
  const { memoryLimitInBytes: memory = 0n, cpuQuota = 0n } = pod.linux?.resources ?? {};
  const page = BigInt(hugepages?.pageMiB ?? 0) << 20n;
  const size: Record<string, string> = {};
  // A machine that is made of huge pages is made of whole ones, or its hypervisor ends.
  if (memory > 0n && page > 0n)
    size[`${prefix}.sandbox-memory`] = String(((memory + page - 1n) / page) * page);
  if (withoutLimit && memory <= 0n && cpuQuota > 0n)
    size[`${prefix}.sandbox-memory`] = String(withoutLimit.memoryMiB * 2 ** 20);
  if (withoutLimit && memory > 0n && cpuQuota <= 0n) {
    size[`${prefix}.sandbox-cpu-period`] = String(cpuPeriod);
    size[`${prefix}.sandbox-cpu-quota`] = String(Math.round(withoutLimit.vcpus * cpuPeriod));
  }
  return size;
};

/**
 * What containerd's shims (gVisor, Kata) read to group containers into pods. On every sandbox's spec. `machine`: where
 * the shim is Kata's.
 */
export const sandboxAnnotations = (
  podId: string,
  pod: PodSandboxConfig,
  machine: Machine = {},
): Record<string, string> => ({
  ...podAnnotations(podId, pod),
  ...sizeOf(pod, machine),
  [`${prefix}.container-type`]: "sandbox",
});

/** The same on every container's spec. */
export const containerAnnotations = (
  podId: string,
  pod: PodSandboxConfig,
  config: ContainerConfig,
): Record<string, string> => ({
  ...podAnnotations(podId, pod),
  [`${prefix}.container-type`]: "container",
  [`${prefix}.container-name`]: config.metadata?.name ?? "",
  [`${prefix}.image-name`]: config.image?.userSpecifiedImage || config.image?.image || "",
});
