import { readFileSync } from "node:fs";
import { join } from "node:path";
import { throwExhausted } from "../linux/exhausted.ts";

/** Where the kernel shows cgroups: controller → mount. With v2 the one hierarchy is at "". */
export type CgroupLayout = {
  version: 1 | 2;
  mounts: Record<string, { mountpoint: string; root: string }>;
  /** The v2 hierarchy beside v1's (hybrid): without controllers, but runtimes make their cgroups there too. */
  beside?: { mountpoint: string; root: string };
};

/** Directories of one cgroup: controller → absolute path, v2 at "". Stored in a record. */
export type CgroupPaths = Record<string, string>;

const unescapeOctal = (text: string) =>
  text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));

/**
 * The layout by /proc/self/mountinfo (proc(5)). Where v1 controllers are mounted it is version 1, also when a v2
 * hierarchy stands beside them (hybrid).
 */
export const parseLayout = (mountinfo: string): CgroupLayout => {
  const v1: CgroupLayout["mounts"] = {};
  let unified: { mountpoint: string; root: string } | undefined;
  for (const line of mountinfo.split("\n")) {
    const [before, after] = line.split(" - ");
    if (before === undefined || after === undefined) continue;
    const [type, , options = ""] = after.split(" ");
    const fields = before.split(" ");
    const mount = { root: unescapeOctal(fields[3]!), mountpoint: unescapeOctal(fields[4]!) };
    if (type === "cgroup2") unified ??= mount;
    else if (type === "cgroup")
      for (const option of options.split(","))
        if (
          /^(name=.+|cpu|cpuacct|cpuset|memory|devices|freezer|blkio|pids|hugetlb|net_cls|net_prio|perf_event|rdma)$/.test(
            option,
          )
        )
          v1[option] ??= mount;
  }
  if (v1.memory || v1.cpuacct || v1.pids)
    return { version: 1, mounts: v1, ...(unified && { beside: unified }) };
  return { version: 2, mounts: unified ? { "": unified } : {} };
};

/** The directories of the cgroups in /proc/PID/cgroup (cgroups(7)). */
export const parseCgroups = (text: string, layout: CgroupLayout): CgroupPaths => {
  const paths: CgroupPaths = {};
  for (const line of text.split("\n")) {
    const [, controllers, path] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    if (controllers === undefined || path === undefined) continue;
    for (const controller of controllers.split(",")) {
      const mount = layout.mounts[controller];
      if (mount !== undefined) paths[controller] = join(mount.mountpoint, below(path, mount.root));
    }
  }
  return paths;
};

/** The directories of a cgroup by its path from the root, as in `linux.cgroupsPath` with the cgroupfs driver. */
export const cgroupAt = (path: string, layout: CgroupLayout): CgroupPaths =>
  Object.fromEntries(
    Object.entries(layout.mounts).map(([controller, mount]) => [
      controller,
      join(mount.mountpoint, below(path, mount.root)),
    ]),
  );

/** All directories that a runtime may have made for the cgroup, those that hold no controllers among them. */
export const everywhere = (path: string, layout: CgroupLayout): CgroupPaths => ({
  ...cgroupAt(path, layout),
  ...(layout.beside && { "": join(layout.beside.mountpoint, below(path, layout.beside.root)) }),
});

/**
 * The path of a pod's cgroup, which is the parent of the cgroup `cgroupsPath` names (runtime-spec config-linux.md):
 * a path, or SLICE:PREFIX:NAME for systemd, whose slice a-b.slice lies below a.slice. undefined at the root.
 */
export const parentOf = (cgroupsPath: string | undefined): string | undefined => {
  if (cgroupsPath === undefined || cgroupsPath === "") return undefined;
  const [slice, ...scope] = cgroupsPath.split(":");
  if (scope.length === 2) {
    if (slice === undefined || !slice.endsWith(".slice") || slice === "-.slice") return undefined;
    const parts = slice.slice(0, -".slice".length).split("-");
    return `/${parts.map((_, i) => `${parts.slice(0, i + 1).join("-")}.slice`).join("/")}`;
  }
  const parent = join("/", cgroupsPath, "..");
  return parent === "/" ? undefined : parent;
};

/** The path of the cgroup itself that `cgroupsPath` names: a path, or systemd's scope; undefined for what is neither. */
export const pathOf = (cgroupsPath: string): string | undefined => {
  const [, prefix, name, ...rest] = cgroupsPath.split(":");
  if (prefix !== undefined && name !== undefined && rest.length === 0)
    return join(parentOf(cgroupsPath) ?? "/", `${prefix}-${name}.scope`);
  return cgroupsPath.startsWith("/") ? cgroupsPath : undefined;
};

/** A mount may show a part of the hierarchy only; paths are told from its top. */
const below = (path: string, root: string) =>
  root !== "/" && (path === root || path.startsWith(`${root}/`)) ? path.slice(root.length) : path;

/** The layout of this machine. */
export const readLayout = (): CgroupLayout => parseLayout(readFileSync("/proc/self/mountinfo", "utf8"));

/** The cgroups that a process is in; {} when it is gone. */
export const readCgroups = (pid: number, layout: CgroupLayout): CgroupPaths => {
  try {
    return parseCgroups(readFileSync(`/proc/${pid}/cgroup`, "utf8"), layout);
  } catch (error) {
    throwExhausted(error);
    return {};
  }
};
