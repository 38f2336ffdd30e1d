import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { below } from "./below.ts";
import type { LayerTree, Sealed } from "./layer-tree.ts";
import type { TarEntry, TarSink } from "./tar.ts";

/** What one layer may bring at most: a defence against bombs. */
export type UnpackLimits = { entries: number; bytes: number };

/** A {@link TarSink} that makes a layer; then `seal` with the layers below, nearest first, ends it. */
export type Applier = TarSink & {
  /** True when the layers below have a say: `seal` wants them then. */
  needsBelow(): boolean;
  seal(parents: readonly string[]): Sealed;
};

const LINKS_MAX = 40;
const WHITEOUT = ".wh.";
const OPAQUE_WHITEOUT = ".wh..wh..opq";

const hostile = (entry: { name: string }, what: string) =>
  new RuntimeError("invalid-argument", `Cannot unpack layer: ${JSON.stringify(entry.name)} ${what}`);

/**
 * Applies the entries of a layer tar to a tree as GNU tar and containerd do (image-spec layer.md; kernel,
 * overlayfs.rst), whatever the tree is kept in.
 *
 * Never outside: only directories proven to be real ones are walked through, symbolic links among the parents are
 * followed by us, with the layer's root as their "/", and the last part of a name is never followed. Nobody else
 * writes to the tree meanwhile, so what was proven stays true until an entry of the tar itself replaces it.
 *
 * The layers below are asked at the end only, so that all layers of an image can be unpacked side by side.
 */
export const createApplier = (tree: LayerTree, limits: UnpackLimits): Applier => {
  /** Directories of the layer that were seen to be real. "" is the root. */
  const real = new Set<string>([""]);
  /** Directories that the layer does not list: they look as they do below. */
  const implied = new Set<string>([""]);
  /** Hard links to files of layers below, by the path of the link; an empty file keeps each one's place. */
  const borrowed = new Map<string, { name: string; source: string }>();
  let entries = 0;
  let bytes = 0;
  let file: TarEntry | undefined;

  const spend = (size: number) => {
    bytes += size;
    if (bytes > limits.bytes)
      throw new RuntimeError("resource-exhausted", `Cannot unpack layer: more than ${limits.bytes} bytes`);
  };

  /** The real directory that `parts` lead to; makes what is missing. */
  const directory = (parts: string[], entry: TarEntry): string => {
    const straight = parts.join("/");
    if (real.has(straight)) return straight;
    let walked: string[] = [];
    const todo = parts.toReversed();
    for (let links = 0; todo.length > 0; ) {
      const part = todo.pop()!;
      if (part === "" || part === ".") continue;
      if (part === "..") {
        // From a link's target; above the root is the root.
        walked.pop();
        continue;
      }
      const path = [...walked, part].join("/");
      if (!real.has(path)) {
        const kind = tree.kindOf(path);
        if (kind === "symlink") {
          if (++links > LINKS_MAX) throw hostile(entry, "goes through too many symbolic links");
          const to = tree.readlink(path);
          if (to.startsWith("/")) walked = [];
          todo.push(...to.split("/").reverse());
          if (todo.length > 4096) throw hostile(entry, "goes through too many symbolic links");
          continue;
        }
        if (kind === undefined || kind === "whiteout") {
          if (part.length > 255) throw hostile(entry, "has a part longer than 255 bytes");
          makeDirectory(path, kind);
          implied.add(path);
        } else if (kind !== "directory") throw hostile(entry, "lies below something that is no directory");
        real.add(path);
      }
      walked.push(part);
    }
    return walked.join("/");
  };

  const makeDirectory = (path: string, instead: "whiteout" | undefined) => {
    borrowed.delete(path);
    if (instead === "whiteout") tree.remove(path);
    tree.mkdir(path);
    // What the whiteout hid stays hidden.
    if (instead === "whiteout") tree.setOpaque(path);
  };

  /** Makes room for an entry that is no directory. */
  const clear = (path: string) => {
    borrowed.delete(path);
    const kind = tree.kindOf(path);
    if (kind === undefined) return;
    tree.remove(path);
    // What was below it is forgotten when it is asked for again: a search now would be one for each hostile entry.
    if (kind === "directory") forget();
  };

  const forget = () => {
    real.clear();
    real.add("");
  };

  /** True when nothing but directories leads to `path`, which may have been replaced since it was noted. */
  const isDirectory = (path: string): boolean => {
    if (real.has(path)) return true;
    const slash = path.lastIndexOf("/");
    if (!isDirectory(slash < 0 ? "" : path.slice(0, slash)) || tree.kindOf(path) !== "directory")
      return false;
    real.add(path);
    return true;
  };

  const listDirectory = (path: string, entry: TarEntry) => {
    const kind = tree.kindOf(path);
    if (kind !== "directory") {
      if (kind !== undefined && kind !== "whiteout") clear(path);
      makeDirectory(path, kind === "whiteout" ? kind : undefined);
    }
    real.add(path);
    implied.delete(path);
    tree.dress(path, dressOf(entry));
  };

  const whiteout = (name: string, parent: string, entry: TarEntry) => {
    if (name === OPAQUE_WHITEOUT) {
      tree.setOpaque(parent);
      return;
    }
    // Bookkeeping of AUFS.
    if (name.startsWith(".wh..wh.")) return;
    const hidden = name.slice(WHITEOUT.length);
    if (hidden === "" || hidden === "." || hidden === "..")
      throw hostile(entry, "hides nothing that has a name");
    const path = join(parent, hidden);
    const kind = tree.kindOf(path);
    // It hides what is below, never what this layer itself brings.
    if (kind === undefined) {
      borrowed.delete(path);
      tree.whiteout(path);
    } else if (kind === "directory") tree.setOpaque(path);
  };

  const hardLink = (path: string, entry: TarEntry) => {
    const parts = partsOf(entry.linkname, entry);
    const base = parts.pop();
    if (base === undefined) throw hostile(entry, "links to the root");
    const source = join(directory(parts, entry), base);
    if (source === path) return;
    const kind = tree.kindOf(source);
    if (kind === "directory" || kind === "whiteout") throw hostile(entry, "links to what is no file");
    const lent = kind === undefined ? { name: entry.name, source } : borrowed.get(source);
    clear(path);
    if (lent === undefined) {
      tree.link(source, path);
      return;
    }
    tree.open(path, 0, false);
    tree.close({ mode: 0, uid: 0, gid: 0, mtime: 0n, xattrs: new Map() });
    borrowed.set(path, lent);
  };

  const ordinary = (path: string, entry: TarEntry) => {
    switch (entry.type) {
      case "directory":
        listDirectory(path, entry);
        return;
      case "file":
        borrowed.delete(path);
        if (!tree.open(path, entry.size, entry.isSparse)) {
          clear(path);
          tree.open(path, entry.size, entry.isSparse);
        }
        file = entry;
        return;
      case "link":
        hardLink(path, entry);
        return;
      case "symlink":
        clear(path);
        if (entry.linkname === "") throw hostile(entry, "is a symbolic link to nothing");
        tree.symlink(path, entry.linkname, dressOf(entry));
        return;
      case "character-device":
      case "block-device":
      case "fifo":
        clear(path);
        tree.special(path, { type: entry.type, major: entry.major, minor: entry.minor }, dressOf(entry));
        return;
      default:
        entry.type satisfies never;
    }
  };

  /** Makes the directories above `path` as far as nothing else is in their place. */
  const directoriesOf = (path: string) => {
    for (let slash = path.indexOf("/"); slash > 0; slash = path.indexOf("/", slash + 1)) {
      const above = path.slice(0, slash);
      const kind = tree.kindOf(above);
      if (kind !== undefined && kind !== "directory") return;
      if (kind === "directory") continue;
      tree.mkdir(above);
      implied.add(above);
    }
  };

  return {
    entry(entry) {
      if (++entries > limits.entries)
        throw new RuntimeError(
          "resource-exhausted",
          `Cannot unpack layer: more than ${limits.entries} entries`,
        );
      // The holes of a sparse file are given back below, with its data.
      if (entry.type === "file" && !entry.isSparse) spend(entry.size);
      const parts = partsOf(entry.name, entry);
      const name = parts.pop();
      if (name === undefined) {
        if (entry.type !== "directory") throw hostile(entry, "would replace the root");
        implied.delete("");
        tree.dress("", dressOf(entry));
        return;
      }
      const parent = directory(parts, entry);
      if (name.startsWith(WHITEOUT)) {
        whiteout(name, parent, entry);
        return;
      }
      if (name.length > 255) throw hostile(entry, "has a part longer than 255 bytes");
      const path = join(parent, name);
      ordinary(path, entry);
    },

    data(chunk, offset) {
      // A whiteout has a body at times; it goes nowhere.
      if (file === undefined) return;
      if (file.isSparse) spend(chunk.length);
      tree.write(chunk, offset);
    },

    end() {
      if (file === undefined) return;
      tree.close(dressOf(file));
      file = undefined;
    },

    needsBelow: () => implied.size > 0 || borrowed.size > 0,

    seal(parents) {
      const lower = below(parents);
      for (const [path, { name, source }] of borrowed) {
        const parent = path.slice(0, Math.max(0, path.lastIndexOf("/")));
        if (!isDirectory(parent) || tree.kindOf(path) !== "other") continue;
        const found = lower.find(source);
        if (found === undefined || found.isDirectory)
          throw hostile({ name }, `links to ${JSON.stringify(source)}, which is not there`);
        if (tree.copiesUp) directoriesOf(source);
        tree.remove(path);
        tree.linkBelow(path, source, found.path);
      }
      for (const path of implied) {
        const found = lower.find(path);
        if (found?.isDirectory && isDirectory(path)) tree.dress(path, found.attributes());
      }
      return tree.seal();
    },
  };
};

const dressOf = (entry: TarEntry) => {
  const { mode, uid, gid, mtime } = entry;
  if (entry.xattrs.size === 0) return { mode, uid, gid, mtime, xattrs: entry.xattrs };
  // trusted.overlay.* would steer overlayfs; a label is the host's to give.
  const xattrs = new Map(
    [...entry.xattrs].filter(([name]) => !name.startsWith("trusted.") && name !== "security.selinux"),
  );
  return { mode, uid, gid, mtime, xattrs };
};

/** Parts of a name; "/" and "." say nothing, ".." is refused. */
const partsOf = (name: string, entry: TarEntry): string[] => {
  const parts = name.split("/").filter((part) => part !== "" && part !== ".");
  if (parts.includes("..")) throw hostile(entry, 'has ".." in its name');
  return parts;
};

const join = (parent: string, name: string) => (parent === "" ? name : `${parent}/${name}`);
