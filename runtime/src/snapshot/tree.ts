import {
  closeSync,
  constants,
  lstatSync,
  openSync,
  readdirSync,
  renameSync,
  rmdirSync,
  rmSync,
  unlinkSync,
} from "node:fs";

/* A container may nest directories deeper than any path can say: neither recursion nor long paths here. */

const PATH_SAFE = 3000;

const bytes = (path: string) => Buffer.from(path, "latin1");
const byteString = (path: string) => Buffer.from(path).toString("latin1");

/** Disk blocks and inodes below `root`, which may change meanwhile. A file with several names counts once. */
export const measureTree = (root: string): { bytes: bigint; inodes: bigint } => {
  let blocks = 0;
  let inodes = 0;
  const linked = new Set<number>();
  const todo: ({ path: string } | { close: number })[] = [{ path: byteString(root) }];
  for (let next = todo.pop(); next !== undefined; next = todo.pop()) {
    if ("close" in next) {
      closeSync(next.close);
      continue;
    }
    let { path } = next;
    try {
      const stat = lstatSync(bytes(path));
      if (stat.nlink > 1 && !stat.isDirectory()) {
        if (linked.has(stat.ino)) continue;
        linked.add(stat.ino);
      }
      blocks += stat.blocks;
      inodes++;
      if (!stat.isDirectory()) continue;
      if (path.length > PATH_SAFE) {
        // Go on from a descriptor; it is closed when all below it is done.
        const fd = openSync(bytes(path), constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
        todo.push({ close: fd });
        path = `/proc/self/fd/${fd}`;
      }
      for (const name of readdirSync(bytes(path), { encoding: "latin1" }))
        todo.push({ path: `${path}/${name}` });
    } catch (error) {
      // It went away while we looked.
      const { code } = error as NodeJS.ErrnoException;
      if (code !== "ENOENT" && code !== "ENOTDIR" && code !== "ELOOP") {
        for (const item of todo) if ("close" in item) closeSync(item.close);
        throw error;
      }
    }
  }
  return { bytes: BigInt(blocks) * 512n, inodes: BigInt(inodes) };
};

/**
 * Removes `root`, a directory in a directory of its own kind (`trash`): what lies deep is moved up beside it
 * first, so every path stays short.
 */
export const removeTree = (root: string): void => {
  const todo = [byteString(root)];
  let moved = 0;
  for (let path = todo.pop(); path !== undefined; path = todo.pop()) {
    let names: string[];
    try {
      names = readdirSync(bytes(path), { encoding: "latin1" });
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOTDIR") rmSync(bytes(path), { force: true });
      else if (code !== "ENOENT") throw error;
      continue;
    }
    for (const name of names) {
      const child = `${path}/${name}`;
      try {
        unlinkSync(bytes(child));
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code === "ENOENT") continue;
        if (code !== "EISDIR" && code !== "EPERM") throw error;
        try {
          rmdirSync(bytes(child));
        } catch (full) {
          if ((full as NodeJS.ErrnoException).code !== "ENOTEMPTY") throw full;
          const up = `${byteString(root)}.${moved++}`;
          renameSync(bytes(child), bytes(up));
          todo.push(up);
        }
      }
    }
    rmdirSync(bytes(path));
  }
};
