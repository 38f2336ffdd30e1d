import type { ContainerConfig, PodSandboxConfig } from "@bulkhead/lib/gen/cri_pb.js";

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
      // Our own prefix tells shims who is who: a pod must not write it.
      .filter(([key]) => !key.startsWith(`${prefix}.`) && allowed.some((pattern) => matches(pattern, key))),
  );

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

/** What containerd's shims (gVisor, Kata) read to group containers into pods. On every sandbox's spec. */
export const sandboxAnnotations = (podId: string, pod: PodSandboxConfig): Record<string, string> => ({
  ...podAnnotations(podId, pod),
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
