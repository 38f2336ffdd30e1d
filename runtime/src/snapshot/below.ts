import { lstatSync } from "node:fs";
import { isOpaque, readXattrs } from "../linux/file-attributes.ts";
import type { Attributes } from "./layer-tree.ts";

export type Found = {
  path: Buffer;
  isDirectory: boolean;
  attributes(): Attributes;
};

/** A look at the layers below, given as directories, nearest first. No symbolic link is followed. */
export const below = (parents: readonly string[]): { find(path: string): Found | undefined } => {
  const roots = parents.map((dir) => Buffer.from(dir).toString("latin1"));

  /** What `root` says about `parts`: "hidden" ends the search in the layers below it. */
  const look = (root: string, parts: string[]): Found | "hidden" | "silent" => {
    let opaque = false;
    for (let n = 0; n <= parts.length; n++) {
      const path = Buffer.from([root, ...parts.slice(0, n)].join("/"), "latin1");
      const stat = lstatSync(path, { bigint: true, throwIfNoEntry: false });
      if (stat === undefined) return opaque ? "hidden" : "silent";
      if (stat.isCharacterDevice() && stat.rdev === 0n) return "hidden";
      if (n === parts.length)
        return {
          path,
          isDirectory: stat.isDirectory(),
          attributes: () => ({
            mode: Number(stat.mode & 0o7777n),
            uid: Number(stat.uid),
            gid: Number(stat.gid),
            mtime: stat.mtimeNs,
            xattrs: readXattrs(path),
          }),
        };
      if (!stat.isDirectory()) return "hidden";
      opaque ||= isOpaque(path);
    }
    return "silent";
  };

  return {
    find(path) {
      const parts = path === "" ? [] : path.split("/");
      for (const root of roots) {
        const found = look(root, parts);
        if (found === "hidden") return undefined;
        if (found !== "silent") return found;
      }
      return undefined;
    },
  };
};
