import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import type { PodSandboxConfig } from "@bulkhead/lib/gen/cri_pb.js";
import type { Namespaces } from "../handler/handler.ts";
import { passedAnnotations, sandboxAnnotations } from "./annotations.ts";
import { cgroupsPath } from "./cgroup.ts";
import type { HostFacts } from "./host.ts";
import { mountsOf, type PodFiles } from "./mounts.ts";
import { namespacesOf } from "./namespaces.ts";
import type { Spec } from "./oci.ts";
import { clampOomScoreAdj } from "./resources.ts";
import { defaultSeccomp } from "./seccomp-default.ts";
import { sysctlsOf } from "./sysctl.ts";
import { mappingsOf } from "./user-namespace.ts";

/** Where the holder's program stands in its root file system. */
export const holderPath = "/holder";

/**
 * The holder of a pod (pause): the first process of a shared PID namespace, or the root container of a sandbox.
 * It may do nothing and costs nearly nothing, and the kernel takes it last.
 */
export const holderSpec = (input: {
  id: string;
  config: PodSandboxConfig;
  namespaces: Namespaces;
  hostname: string;
  files: PodFiles;
  rootfs: string;
  pid: "own" | "host";
  /** Without a process nothing has to be held: the pod is namespaces and a cgroup. */
  process: boolean;
  allowedAnnotations: readonly string[];
  /** Where the shim is Kata's. */
  kata?: ShimHandlerConfig["kata"];
  /** What we ask of the sandbox ourselves. */
  hints?: Readonly<Record<string, string>>;
  host: HostFacts;
}): Spec => {
  const { config, host } = input;
  const privileged = config.linux?.securityContext?.privileged ?? false;
  return {
    ociVersion: "1.2.0",
    ...(input.namespaces.uts !== undefined && { hostname: input.hostname }),
    root: { path: input.rootfs, readonly: true },
    ...(input.process && {
      process: {
        user: { uid: 65535, gid: 65535 },
        args: [holderPath],
        env: ["PATH=/"],
        cwd: "/",
        capabilities: { bounding: [], effective: [], permitted: [] },
        noNewPrivileges: true,
        oomScoreAdj: clampOomScoreAdj(-998, host),
      },
    }),
    mounts: mountsOf({
      mounts: [],
      files: { ...input.files, hostname: "", hosts: "", resolvConf: input.files.resolvConf },
      privileged: false,
      readonlyRoot: true,
    }),
    annotations: {
      ...input.hints,
      ...passedAnnotations(input.allowedAnnotations, config.annotations),
      ...sandboxAnnotations(input.id, config, input.kata),
    },
    linux: {
      namespaces: namespacesOf(input.namespaces, { use: input.pid }, host.cgroup, privileged),
      ...mappingsOf(config),
      cgroupsPath: cgroupsPath(config.linux?.cgroupParent ?? "", input.id, host.cgroupDriver),
      resources: { cpu: { shares: 2 }, devices: [{ allow: false, access: "rwm" }] },
      sysctl: sysctlsOf(config.linux?.sysctls ?? {}, {
        net: input.namespaces.net !== undefined,
        ipc: input.namespaces.ipc !== undefined,
      }),
      maskedPaths: ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
      readonlyPaths: ["/proc/sys", "/proc/irq", "/proc/bus"],
      ...(host.seccomp && { seccomp: defaultSeccomp([], host.arch) }),
    },
  };
};
