import { lstat, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";

/**
 * A pod's emptyDir volumes that gVisor shall keep in the sandbox instead of on the node. The kubelet has made them
 * before it runs the sandbox, and gVisor is told of them there and with each container that mounts one.
 */

const Names = z.array(z.object({ name: z.string(), medium: z.enum(["disk", "memory"]) }));
type Volume = z.infer<typeof Names>[number];

const file = (podDir: string): string => join(podDir, "empty-dirs.json");
/** More than any pod has; a directory full of names shall not become a list of annotations. */
const maxVolumes = 64;
/** gVisor's own file in a volume on disk that it keeps. */
const filestore = ".gvisor.filestore.";

/** Looks for them, writes down which, and returns gVisor's annotations for the sandbox. */
export const chooseEmptyDirs = async (
  podDir: string,
  uid: string,
  kubeletPods = "/var/lib/kubelet/pods",
): Promise<Record<string, string>> => {
  if (!/^[A-Za-z0-9-]+$/.test(uid)) return {};
  const directory = join(kubeletPods, uid, "volumes/kubernetes.io~empty-dir");
  const names = (await readdir(directory).catch(() => [])).sort().slice(0, maxVolumes);
  const found = await Promise.all(names.map((name) => volumeOf(directory, name)));
  const volumes = found.filter((volume) => volume !== undefined);
  await writeFile(file(podDir), JSON.stringify(volumes), { mode: 0o600 });
  return hintsOf(volumes);
};

/** The same annotations for a container of the pod; refuses a mount that would show another directory. */
export const emptyDirHints = async (
  podDir: string,
  mounts: readonly { hostPath: string }[],
): Promise<Record<string, string>> => {
  const text = await readFile(file(podDir), "utf8").catch(() => "[]");
  const volumes = Names.parse(JSON.parse(text));
  for (const { name } of volumes) {
    const part = mounts.find(({ hostPath }) => hostPath.includes(`/volume-subpaths/${name}/`));
    if (part !== undefined)
      throw new RuntimeError(
        "failed-precondition",
        `Cannot mount a subPath of emptyDir "${name}": its content is in the sandbox; mount the whole volume, or use a profile with handler.gvisor.emptyDir: node`,
      );
  }
  return hintsOf(volumes);
};

/** undefined for one with content from before the sandbox, which only the node has. */
const volumeOf = async (directory: string, name: string): Promise<Volume | undefined> => {
  const path = join(directory, name);
  if (!/^[a-z0-9-]+$/.test(name)) return undefined;
  const [own, parent] = await Promise.all([lstat(path), lstat(directory)]);
  if (!own.isDirectory()) return undefined;
  const inside = await readdir(path);
  if (!inside.every((entry) => entry.startsWith(filestore))) return undefined;
  // The kubelet mounts one in memory, and one with hugepages, as a file system of its own.
  return { name, medium: own.dev === parent.dev ? "disk" : "memory" };
};

/** gVisor's shim makes the rest of these: where the volume is, and how each container mounts it. */
const hintsOf = (volumes: readonly Volume[]): Record<string, string> =>
  Object.fromEntries(
    volumes.flatMap(({ name, medium }) => [
      [`dev.gvisor.spec.mount.${name}.type`, medium === "memory" ? "tmpfs" : "bind"],
      [`dev.gvisor.spec.mount.${name}.share`, "pod"],
      [`dev.gvisor.spec.mount.${name}.options`, "rw"],
    ]),
  );
