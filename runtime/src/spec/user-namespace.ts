import type {
  IDMapping as CriMapping,
  NamespaceOption,
  PodSandboxConfig,
  UserNamespace,
} from "@bulkhead/lib/gen/cri_pb.js";
import { NamespaceMode } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { IdMapping, Linux } from "./oci.ts";

/** The one range of the node's ids that a pod's ids are. */
export type PodIds = { uids: [IdMapping]; gids: [IdMapping] };

const maxId = 2 ** 32 - 1;
/** As many as the kernel takes (user_namespaces(7)). */
const maxMappings = 340;

const bad = (what: string): RuntimeError => new RuntimeError("invalid-argument", `Cannot ${what}`);

/** CRI's mappings as OCI ones, each of them a range that the kernel can have. `what` is the field's name. */
export const idMappings = (mappings: readonly CriMapping[], what: string): IdMapping[] => {
  if (mappings.length > maxMappings)
    throw bad(`use ${what}: ${mappings.length} mappings, the kernel takes ${maxMappings}`);
  return mappings.map(({ containerId, hostId, length }) => {
    if (length === 0) throw bad(`use ${what}: a mapping of length 0`);
    if (containerId + length > maxId || hostId + length > maxId)
      throw bad(
        `use ${what}: the mapping of ${length} ids from ${containerId} to ${hostId} exceeds ${maxId}`,
      );
    return { containerID: containerId, hostID: hostId, size: length };
  });
};

const theOne = (mappings: readonly CriMapping[], what: string): IdMapping => {
  const [mapping, ...more] = idMappings(mappings, what);
  if (mapping === undefined || more.length > 0)
    throw bad(`run the pod in a user namespace: ${what} must be one mapping, not ${mappings.length}`);
  if (mapping.containerID !== 0)
    throw bad(`run the pod in a user namespace: ${what} must begin at id 0 of the container`);
  if (mapping.hostID === 0)
    throw bad(`run the pod in a user namespace: ${what} maps the pod's root to the node's`);
  return mapping;
};

/** The ids of a pod that has a user namespace of its own; undefined when it is in the node's. */
export const podIdsOf = (config: PodSandboxConfig): PodIds | undefined => {
  const options = config.linux?.securityContext?.namespaceOptions;
  const userns = options?.usernsOptions;
  if (userns === undefined) return undefined;
  switch (userns.mode) {
    case NamespaceMode.NODE:
      if (userns.uids.length > 0 || userns.gids.length > 0)
        throw bad("map ids of a pod that is in the node's user namespace");
      return undefined;
    case NamespaceMode.POD:
      break;
    default:
      throw bad(
        `run the pod in a user namespace of mode ${NamespaceMode[userns.mode] ?? userns.mode}: only POD and NODE are known`,
      );
  }
  const uids = theOne(userns.uids, "userns_options.uids");
  const gids = theOne(userns.gids, "userns_options.gids");
  if (uids.hostID !== gids.hostID || uids.size !== gids.size)
    throw bad("run the pod in a user namespace: uids and gids must be the same range");
  for (const [name, mode] of [
    ["network", options?.network],
    ["pid", options?.pid],
    ["ipc", options?.ipc],
  ] as const)
    if (mode === NamespaceMode.NODE)
      throw bad(
        `run the pod in a user namespace with the node's ${name} namespace: that one is not the pod's to manage`,
      );
  return { uids: [uids], gids: [gids] };
};

/** The same in a specification, beside the namespace that it joins (config-linux.md, "User namespace mappings"). */
export const mappingsOf = (config: PodSandboxConfig): Pick<Linux, "uidMappings" | "gidMappings"> => {
  const ids = podIdsOf(config);
  return ids ? { uidMappings: ids.uids, gidMappings: ids.gids } : {};
};

const sameMappings = (a: readonly CriMapping[], b: readonly CriMapping[]): boolean =>
  a.length === b.length &&
  a.every(
    (mapping, index) =>
      mapping.containerId === b[index]?.containerId &&
      mapping.hostId === b[index]?.hostId &&
      mapping.length === b[index]?.length,
  );

const inNode = (userns: UserNamespace | undefined): boolean =>
  userns === undefined || userns.mode === NamespaceMode.NODE;

/** Refuses a container whose user namespace is said to be another one than its pod's. */
export const requireSameIds = (
  pod: NamespaceOption | undefined,
  container: NamespaceOption | undefined,
): void => {
  const [ofPod, own] = [pod?.usernsOptions, container?.usernsOptions];
  // A caller that says nothing means the pod's.
  if (own === undefined || (inNode(ofPod) && inNode(own))) return;
  if (
    ofPod === undefined ||
    ofPod.mode !== own.mode ||
    !sameMappings(ofPod.uids, own.uids) ||
    !sameMappings(ofPod.gids, own.gids)
  )
    throw bad("create the container in another user namespace than its pod's");
};
