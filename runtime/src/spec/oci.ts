/**
 * The parts of the OCI runtime configuration that Bulkhead writes (runtime-spec 1.2, config.md and config-linux.md).
 * Field names are the specification's.
 */
export type Spec = {
  ociVersion: string;
  hostname?: string;
  process?: Process;
  root: { path: string; readonly?: boolean };
  mounts: Mount[];
  annotations?: Record<string, string>;
  /** By name: prestart, createRuntime, createContainer, startContainer, poststart, poststop. */
  hooks?: Record<string, { path: string; args?: string[]; env?: string[]; timeout?: number }[]>;
  linux?: Linux;
};

export type Process = {
  terminal?: boolean;
  consoleSize?: { height: number; width: number };
  user: { uid: number; gid: number; umask?: number; additionalGids?: number[] };
  args: string[];
  env: string[];
  cwd: string;
  capabilities?: Capabilities;
  rlimits?: { type: string; soft: number; hard: number }[];
  noNewPrivileges?: boolean;
  apparmorProfile?: string;
  selinuxLabel?: string;
  oomScoreAdj?: number;
};

export type Capabilities = {
  bounding: string[];
  effective: string[];
  permitted: string[];
  inheritable?: string[];
  ambient?: string[];
};

export type Mount = {
  destination: string;
  type?: string;
  source?: string;
  options?: string[];
  uidMappings?: IdMapping[];
  gidMappings?: IdMapping[];
};

export type IdMapping = { containerID: number; hostID: number; size: number };

export type Linux = {
  namespaces: { type: "pid" | "network" | "ipc" | "uts" | "mount" | "cgroup" | "user"; path?: string }[];
  uidMappings?: IdMapping[];
  gidMappings?: IdMapping[];
  devices?: {
    type: string;
    path: string;
    major: number;
    minor: number;
    fileMode?: number;
    uid?: number;
    gid?: number;
  }[];
  cgroupsPath?: string;
  resources?: Resources;
  /** The r-forms are runc's; they reach every mount below. */
  rootfsPropagation?: "private" | "slave" | "shared" | "unbindable" | "rprivate" | "rslave" | "rshared";
  seccomp?: unknown;
  sysctl?: Record<string, string>;
  maskedPaths?: string[];
  readonlyPaths?: string[];
  mountLabel?: string;
};

export type Resources = {
  devices?: { allow: boolean; type?: string; major?: number; minor?: number; access?: string }[];
  memory?: { limit?: number; reservation?: number; swap?: number };
  cpu?: { shares?: number; quota?: number; period?: number; cpus?: string; mems?: string };
  pids?: { limit: number };
  hugepageLimits?: { pageSize: string; limit: number }[];
  unified?: Record<string, string>;
};
