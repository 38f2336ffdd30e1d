import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** Where containers go when their pod names no parent. */
const orphanage = { cgroupfs: "/bulkhead", systemd: "system.slice" } as const;

/**
 * cgroupsPath of a container (config-linux.md, "Cgroups Path"): a path for cgroupfs, `slice:prefix:name` for
 * systemd. kubelet's parent is a path in the one case and ends in a slice in the other.
 */
export const cgroupsPath = (parent: string, id: string, driver: "cgroupfs" | "systemd"): string => {
  if (parent.split("/").includes(".."))
    throw new RuntimeError("invalid-argument", `Cannot use cgroup parent "${parent}": it contains ..`);
  if (driver === "systemd") {
    const slice = parent === "" ? orphanage.systemd : (parent.split("/").at(-1) ?? "");
    if (!slice.endsWith(".slice"))
      throw new RuntimeError("invalid-argument", `Cannot use cgroup parent "${parent}": not a systemd slice`);
    return `${slice}:bulkhead:${id}`;
  }
  const base = parent === "" ? orphanage.cgroupfs : parent;
  return `${base.startsWith("/") ? base : `/${base}`}/${id}`.replace(/\/+/g, "/");
};
