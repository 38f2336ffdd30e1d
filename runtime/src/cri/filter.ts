import { canaryNamespace } from "@bulkhead/lib/api/group.ts";
import type { PodSandboxConfig } from "@bulkhead/lib/gen/cri_pb.js";

/** True when `labels` has every pair of `selector`. */
export const hasLabels = (
  labels: Readonly<Record<string, string>>,
  selector: Readonly<Record<string, string>> | undefined,
): boolean => Object.entries(selector ?? {}).every(([key, value]) => labels[key] === value);

/** Ids are matched as people type them: by prefix; no id matches all. */
export const hasId = (id: string, wanted: string | undefined): boolean => id.startsWith(wanted ?? "");

/** What any list's filter may have. */
type Filter = { id?: string; podSandboxId?: string; labelSelector?: Record<string, string> };

/**
 * The node agent's canaries are pods that the kubelet has never heard of, and a kubelet kills such pods. So they are
 * shown only to those who ask for something particular; a pod of the cluster cannot be in their namespace.
 */
export const isShown = (config: PodSandboxConfig | undefined, filter: Filter | undefined): boolean =>
  config?.metadata?.namespace !== canaryNamespace ||
  Boolean(filter?.id || filter?.podSandboxId || Object.keys(filter?.labelSelector ?? {}).length > 0);
