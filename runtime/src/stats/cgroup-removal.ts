import { readdir, readFile, rmdir } from "node:fs/promises";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { throwExhausted } from "../linux/exhausted.ts";
import type { Linux } from "../linux/linux.ts";
import { readProcess } from "../linux/process.ts";
import { processesOf } from "./cgroup.ts";
import { type CgroupLayout, type CgroupPaths, everywhere, pathOf } from "./layout.ts";

/**
 * The cgroup that the specification in `file` asks for, {} when it is not one of `id` alone. A runtime that was
 * killed half-way has made it and knows nothing of it: the specification does. A scope of systemd's goes by itself,
 * but only when nothing runs in it any more.
 */
export const specCgroup = async (file: string, id: string, layout: CgroupLayout): Promise<CgroupPaths> => {
  try {
    const spec = JSON.parse(await readFile(file, "utf8")) as { linux?: { cgroupsPath?: unknown } };
    const asked = spec.linux?.cgroupsPath;
    const path = typeof asked === "string" ? pathOf(asked) : undefined;
    return path !== undefined && [id, `bulkhead-${id}.scope`].includes(basename(path))
      ? everywhere(path, layout)
      : {};
  } catch (error) {
    throwExhausted(error);
    return {};
  }
};

/** How long processes that were killed may take to be gone: long on a machine that has much else to do. */
const goneMs = 5_000;

/**
 * Ends what is left in a cgroup and removes it, with those below it. One that is gone is no failure; one that cannot
 * be removed is, so that whoever asked keeps its record and asks again.
 */
export const removeCgroup = async (paths: CgroupPaths, linux: Pick<Linux, "kill">): Promise<void> => {
  const end = performance.now() + goneMs;
  // The directories may be of different hierarchies, each with processes of its own.
  for (const [controller, path] of Object.entries(paths))
    for (let pass = 0; !(await removeTree(path)); pass++) {
      const left = processesOf({ [controller]: path });
      for (const pid of left) {
        const startTime = readProcess(pid)?.startTime;
        if (startTime !== undefined) linux.kill(pid, startTime, 9);
      }
      if (performance.now() > end)
        throw new RuntimeError(
          "unavailable",
          `Cannot remove the cgroup ${path}: ${left.length > 0 ? `processes ${left.join(", ")} do not end` : "it is busy"}`,
        );
      await sleep(Math.min(5 * pass, 100));
    }
};

/** True when the cgroup is gone. */
const removeTree = async (path: string): Promise<boolean> => {
  try {
    await rmdir(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return true;
  }
  const below = await readdir(path, { withFileTypes: true }).catch(() => []);
  for (const entry of below) if (entry.isDirectory()) await removeTree(join(path, entry.name));
  return await rmdir(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => error.code === "ENOENT",
  );
};
