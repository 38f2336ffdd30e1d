import { chmod, chown, copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { DNSConfig } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { type Linux, MountFlags } from "../linux/linux.ts";
import type { PodFiles } from "../spec/mounts.ts";
import type { PodIds } from "../spec/user-namespace.ts";

/** What the containers of a pod share on disk, below the pod's directory. */
export const podFiles = (dir: string, ipc: "pod" | "host"): PodFiles => ({
  hostname: join(dir, "hostname"),
  hosts: join(dir, "hosts"),
  resolvConf: join(dir, "resolv.conf"),
  shm: ipc === "host" ? "/dev/shm" : join(dir, "shm"),
});

const shmBytes = 64 * 1024 * 1024;

/** resolv.conf(5) of a pod; undefined means that the node's own is taken. */
export const resolvConf = (dns: DNSConfig | undefined): string | undefined => {
  if (!dns || (dns.servers.length === 0 && dns.searches.length === 0 && dns.options.length === 0))
    return undefined;
  for (const word of [...dns.servers, ...dns.searches, ...dns.options])
    if (/[\s\0]/.test(word))
      throw new RuntimeError("invalid-argument", `Cannot write resolv.conf: "${word}" contains white space`);
  return [
    ...(dns.searches.length > 0 ? [`search ${dns.searches.join(" ")}`] : []),
    ...dns.servers.map((server) => `nameserver ${server}`),
    ...(dns.options.length > 0 ? [`options ${dns.options.join(" ")}`] : []),
    "",
  ].join("\n");
};

/** Writes the files; the shared memory is mounted apart, because it has to be given back. */
export const writePodFiles = async (
  files: PodFiles,
  hostname: string,
  dns: DNSConfig | undefined,
): Promise<void> => {
  const resolv = resolvConf(dns) ?? (await readFile("/etc/resolv.conf", "utf8").catch(() => ""));
  await Promise.all([
    writeFile(files.hostname, `${hostname}\n`, { mode: 0o644 }),
    writeFile(files.resolvConf, resolv, { mode: 0o644 }),
    copyFile("/etc/hosts", files.hosts).catch(() => writeFile(files.hosts, "127.0.0.1 localhost\n")),
  ]);
};

/**
 * Gives the files to the root of the pod's user namespace, as they are root's in any other pod, and lets it through
 * to them.
 */
export const giveTo = async (ids: PodIds, dir: string, files: PodFiles): Promise<void> => {
  const [uid, gid] = [ids.uids[0].hostID, ids.gids[0].hostID];
  await Promise.all([files.hostname, files.hosts, files.resolvConf].map((file) => chown(file, uid, gid)));
  for (const place of [dir, join(dir, "sandbox")]) await letThrough(place, gid);
};

/** Its own group's members may pass through a directory, not list it. */
export const letThrough = async (dir: string, gid: number): Promise<void> => {
  await chown(dir, 0, gid);
  await chmod(dir, 0o710);
};

/** The pod's own /dev/shm. */
export const mountShm = async (path: string, linux: Pick<Linux, "mount">): Promise<void> => {
  await mkdir(path, { recursive: true, mode: 0o1777 });
  const flags = MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC;
  await linux.mount("shm", path, "tmpfs", flags, `mode=1777,size=${shmBytes}`);
};

export const unmountShm = async (path: string, linux: Pick<Linux, "umount">): Promise<void> => {
  await linux.umount(path, MountFlags.DETACH).catch((error: NodeJS.ErrnoException) => {
    // EINVAL: not mounted.
    if (error.code !== "EINVAL" && error.code !== "ENOENT") throw error;
  });
};
