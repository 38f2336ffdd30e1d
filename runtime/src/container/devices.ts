import { lstat, readdir, realpath, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Device } from "@bulkhead/lib/gen/cri_pb.js";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { deviceNumbers } from "../linux/device-numbers.ts";
import type { HostDevice } from "../spec/container-spec.ts";

/** Directories of /dev that belong to the container's own mounts. */
const notDevices = new Set(["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"]);
/** Made anew in every container by the runtime (config-linux.md, "Default Devices"), or not to be shared. */
const made = new Set(["console", "null", "zero", "full", "random", "urandom", "tty", "ptmx"]);

/** The device node at `path`, to be at `as` in the container; undefined when it is something else. */
export const deviceAt = async (
  path: string,
  as: string,
  permissions: string,
): Promise<HostDevice | undefined> => {
  const node = await stat(path, { bigint: true });
  if (!node.isCharacterDevice() && !node.isBlockDevice()) return undefined;
  return {
    path: as,
    type: node.isBlockDevice() ? "b" : "c",
    ...deviceNumbers(node.rdev),
    mode: Number(node.mode & 0o777n),
    uid: Number(node.uid),
    gid: Number(node.gid),
    permissions,
  };
};

const devicesBelow = async (
  dir: string,
  as: string,
  permissions: string,
  skip: boolean,
): Promise<HostDevice[]> => {
  const names = await readdir(dir).catch(() => []);
  const found = await Promise.all(
    names.map(async (name): Promise<HostDevice[]> => {
      const path = join(dir, name);
      const node = await lstat(path).catch(() => undefined);
      if (node?.isDirectory())
        return skip && notDevices.has(name) ? [] : devicesBelow(path, join(as, name), permissions, false);
      if (!node || (skip && made.has(name))) return [];
      if (!node.isCharacterDevice() && !node.isBlockDevice()) return [];
      const device = await deviceAt(path, join(as, name), permissions).catch(() => undefined);
      return device ? [device] : [];
    }),
  );
  return found.flat();
};

/** All devices of the node, for privileged containers. */
export const allDevices = (): Promise<HostDevice[]> => devicesBelow("/dev", "/dev", "rwm", true);

/** The devices that a container asked for; a directory stands for all devices in it. */
export const askedDevices = async (devices: readonly Device[]): Promise<HostDevice[]> =>
  (
    await Promise.all(
      devices.map(async ({ hostPath, containerPath, permissions }) => {
        if (!containerPath.startsWith("/") || containerPath.includes("\0"))
          throw new RuntimeError(
            "invalid-argument",
            `Cannot add device "${hostPath}": its place "${containerPath}" is not an absolute path`,
          );
        if (!/^[rwm]{0,3}$/.test(permissions))
          throw new RuntimeError("invalid-argument", `Cannot add device "${hostPath}": bad permissions`);
        try {
          const path = await realpath(hostPath);
          const device = await deviceAt(path, containerPath, permissions || "rwm");
          if (device) return [device];
          return await devicesBelow(path, containerPath, permissions || "rwm", false);
        } catch (error) {
          throw new RuntimeError("invalid-argument", `Cannot add device "${hostPath}": ${messageOf(error)}`, {
            cause: error,
          });
        }
      }),
    )
  ).flat();
