import type { ContainerConfig, PodSandboxConfig } from "@bulkhead/lib/gen/cri_pb.js";
import type { Namespaces } from "../handler/handler.ts";
import type { ImageConfig } from "../image/images.ts";
import { containerAnnotations, passedAnnotations } from "./annotations.ts";
import { capabilitiesOf } from "./capabilities.ts";
import { cgroupsPath } from "./cgroup.ts";
import { argsOf, cwdOf, envOf } from "./command.ts";
import type { HostFacts } from "./host.ts";
import { mountsOf, type PodFiles, type ResolvedMount, rootPropagation } from "./mounts.ts";
import { namespacesOf, type PidChoice, podNamespaces } from "./namespaces.ts";
import type { Linux, Process, Spec } from "./oci.ts";
import { clampOomScoreAdj, resourcesOf } from "./resources.ts";
import type { SelinuxLabels } from "./selinux.ts";
import { sysctlsOf } from "./sysctl.ts";
import type { User } from "./user.ts";
import { mappingsOf } from "./user-namespace.ts";

/** A device node of the host that a container gets. */
export type HostDevice = {
  path: string;
  type: "c" | "b";
  major: number;
  minor: number;
  mode: number;
  uid: number;
  gid: number;
  /** Some of rwm. */
  permissions: string;
};

export type ContainerInput = {
  id: string;
  config: ContainerConfig;
  pod: { id: string; config: PodSandboxConfig; namespaces: Namespaces; hostname: string; files: PodFiles };
  image: ImageConfig;
  user: User;
  mounts: readonly ResolvedMount[];
  devices: readonly HostDevice[];
  /** SELinux labels of its process and of what is mounted for it. */
  labels?: SelinuxLabels | undefined;
  /** The AppArmor profile, by its name in the kernel. */
  apparmor?: string | undefined;
  /** The seccomp profile itself; undefined: unconfined. */
  seccomp: unknown;
  pid: PidChoice;
  rootfs: string;
  allowedAnnotations: readonly string[];
  host: HostFacts;
};

/** The OCI specification of a container as kubelet described it. Pure: everything of the node is in `input`. */
export const containerSpec = (input: ContainerInput): Spec => {
  const { config, pod, host } = input;
  return {
    ociVersion: "1.2.0",
    ...(pod.namespaces.uts !== undefined && { hostname: pod.hostname }),
    root: { path: input.rootfs, readonly: config.linux?.securityContext?.readonlyRootfs ?? false },
    process: processOf(input),
    mounts: mountsOf({
      mounts: input.mounts,
      files: pod.files,
      privileged: config.linux?.securityContext?.privileged ?? false,
      readonlyRoot: config.linux?.securityContext?.readonlyRootfs ?? false,
    }),
    annotations: {
      ...passedAnnotations(input.allowedAnnotations, pod.config.annotations, config.annotations),
      ...containerAnnotations(pod.id, pod.config, config),
    },
    linux: linuxOf(input, host),
  };
};

const processOf = ({ config, pod, image, user, host, labels, apparmor }: ContainerInput): Process => {
  const security = config.linux?.securityContext;
  return {
    terminal: config.tty,
    user: { uid: user.uid, gid: user.gid, additionalGids: user.groups },
    args: argsOf(config, image),
    env: envOf(config, image, pod.hostname),
    cwd: cwdOf(config, image),
    capabilities: capabilitiesOf(security, host.capabilities),
    noNewPrivileges: security?.noNewPrivs ?? false,
    rlimits: [{ type: "RLIMIT_NOFILE", ...host.openFiles }],
    oomScoreAdj: clampOomScoreAdj(Number(config.linux?.resources?.oomScoreAdj ?? 0n), host),
    ...(apparmor !== undefined && { apparmorProfile: apparmor }),
    ...(labels && { selinuxLabel: labels.process }),
  };
};

const linuxOf = (input: ContainerInput, host: HostFacts): Linux => {
  const { config, pod } = input;
  const security = config.linux?.securityContext;
  const privileged = security?.privileged ?? false;
  const own = podNamespaces(pod.config);
  const propagation = rootPropagation(input.mounts);
  return {
    namespaces: namespacesOf(pod.namespaces, input.pid, host.cgroup, privileged),
    ...mappingsOf(pod.config),
    cgroupsPath: cgroupsPath(pod.config.linux?.cgroupParent ?? "", input.id, host.cgroupDriver),
    devices: input.devices.map(({ path, type, major, minor, mode, uid, gid }) => ({
      type,
      path,
      major,
      minor,
      fileMode: mode,
      uid,
      gid,
    })),
    resources: {
      ...resourcesOf(config.linux?.resources, host),
      devices: privileged
        ? [{ allow: true, access: "rwm" }]
        : [
            { allow: false, access: "rwm" },
            ...input.devices.map(({ type, major, minor, permissions }) => ({
              allow: true,
              type,
              major,
              minor,
              access: permissions,
            })),
          ],
    },
    sysctl: sysctlsOf(pod.config.linux?.sysctls ?? {}, { net: own.net === "pod", ipc: own.ipc === "pod" }),
    maskedPaths: privileged ? [] : (security?.maskedPaths ?? []),
    readonlyPaths: privileged ? [] : (security?.readonlyPaths ?? []),
    ...(propagation !== undefined && { rootfsPropagation: propagation }),
    ...(input.labels && { mountLabel: input.labels.mount }),
    ...(input.seccomp !== undefined && { seccomp: input.seccomp }),
  };
};
