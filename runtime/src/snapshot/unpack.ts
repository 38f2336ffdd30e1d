import {
  chmodSync,
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  futimesSync,
  lchownSync,
  linkSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  openSync,
  readlinkSync,
  rmSync,
  type Stats,
  symlinkSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Linux } from "../linux/linux.ts";
import type { TarEntry, TarSink } from "./tar.ts";

/** What one layer may bring at most: a defence against bombs. */
export type UnpackLimits = { entries: number; bytes: number };

export type UnpackTarget = {
  /** An empty directory that nobody else touches. */
  root: string;
  /** Directories of the layers below, nearest first. */
  parents: string[];
  limits: UnpackLimits;
};

const S_IFCHR = 0o020000;
const S_IFBLK = 0o060000;
const LINKS_MAX = 40;
const OPAQUE = "trusted.overlay.opaque";
const WHITEOUT = ".wh.";
const OPAQUE_WHITEOUT = ".wh..wh..opq";

const hostile = (entry: TarEntry, what: string) =>
  new RuntimeError("invalid-argument", `Cannot unpack layer: ${JSON.stringify(entry.name)} ${what}`);

/**
 * Writes the entries of a layer tar below `root` in the form overlayfs wants (image-spec layer.md; kernel,
 * overlayfs.rst). Synchronous, for a worker thread.
 *
 * Never outside: only directories proven to be real ones are walked through, symbolic links among the parents are
 * followed by us, with `root` as their "/", and the last part of a name is never followed. Nobody else writes
 * here meanwhile, so what was proven stays true until an entry of the tar itself replaces it.
 */
export const createUnpacker = (
  target: UnpackTarget,
  linux: Pick<Linux, "mknod" | "mkfifo" | "lsetxattr">,
): TarSink & { finish(): void; abandon(): void } => {
  const { limits } = target;
  const root = Buffer.from(target.root).toString("latin1");
  const parents = target.parents.map((dir) => Buffer.from(dir).toString("latin1"));
  /** Directories of the layer that were seen to be real. "" is the root. */
  const real = new Set<string>([""]);
  /** Times of directories are set last: each file made in one changes them. */
  const times = new Map<string, number>();
  let entries = 0;
  let bytes = 0;
  let file: { fd: number; entry: TarEntry; path: string } | undefined;

  // The root that a layer does not list is that of the layer below.
  if (parents[0] !== undefined) {
    const stat = lstatSync(Buffer.from(parents[0], "latin1"));
    lchownSync(target.root, stat.uid, stat.gid);
    chmodSync(target.root, stat.mode & 0o7777);
  } else chmodSync(target.root, 0o755);

  const at = (path: string) => Buffer.from(path === "" ? root : `${root}/${path}`, "latin1");

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
        const found = lstatSync(at(path), { throwIfNoEntry: false });
        if (found?.isSymbolicLink()) {
          if (++links > LINKS_MAX) throw hostile(entry, "goes through too many symbolic links");
          const to = readlinkSync(at(path), "latin1");
          if (to.startsWith("/")) walked = [];
          todo.push(...to.split("/").reverse());
          if (todo.length > 4096) throw hostile(entry, "goes through too many symbolic links");
          continue;
        }
        if (found === undefined) implied(path);
        else if (isWhiteout(found)) replaceWhiteout(path);
        else if (!found.isDirectory()) throw hostile(entry, "lies below something that is no directory");
        real.add(path);
      }
      walked.push(part);
    }
    return walked.join("/");
  };

  /** A directory that the layer does not list looks like the one below it that it continues. */
  const implied = (path: string) => {
    mkdirSync(at(path), { mode: 0o755 });
    const below = belowOf(path);
    chmodSync(at(path), below?.stat.isDirectory() ? below.stat.mode & 0o7777 : 0o755);
    if (!below?.stat.isDirectory()) return;
    lchownSync(at(path), below.stat.uid, below.stat.gid);
    chmodSync(at(path), below.stat.mode & 0o7777);
    times.set(path, below.stat.mtimeMs / 1000);
  };

  const replaceWhiteout = (path: string) => {
    unlinkSync(at(path));
    mkdirSync(at(path), { mode: 0o755 });
    // What the whiteout hid stays hidden.
    linux.lsetxattr(at(path), OPAQUE, Buffer.from("y"));
  };

  /** What the nearest layer below has at `path`; no symbolic link is followed. */
  const belowOf = (path: string): { path: Buffer; stat: Stats } | undefined => {
    const parts = path.split("/");
    for (const parent of parents) {
      for (let n = 1; n <= parts.length; n++) {
        const there = Buffer.from(`${parent}/${parts.slice(0, n).join("/")}`, "latin1");
        const stat = lstatSync(there, { throwIfNoEntry: false });
        if (stat === undefined) break;
        if (n === parts.length) return isWhiteout(stat) ? undefined : { path: there, stat };
        if (!stat.isDirectory()) return undefined;
      }
    }
    return undefined;
  };

  /** Makes room for an entry. True when a directory is there that a directory entry may keep. */
  const clear = (path: string, wantsDirectory: boolean): "free" | "kept" | "whiteout" => {
    const found = lstatSync(at(path), { throwIfNoEntry: false });
    if (found === undefined) return "free";
    if (found.isDirectory()) {
      if (wantsDirectory) return "kept";
      rmSync(at(path), { recursive: true });
      real.clear();
      real.add("");
      for (const name of times.keys()) if (name === path || name.startsWith(`${path}/`)) times.delete(name);
      return "free";
    }
    unlinkSync(at(path));
    return isWhiteout(found) ? "whiteout" : "free";
  };

  const setXattrs = (path: string, entry: TarEntry) => {
    for (const [name, value] of entry.xattrs) {
      // trusted.overlay.* would steer overlayfs; a label is the host's to give.
      if (name.startsWith("trusted.") || name === "security.selinux") continue;
      try {
        linux.lsetxattr(at(path), name, value);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        const isCapability = name === "security.capability";
        if (isCapability || (code !== "EOPNOTSUPP" && code !== "ENOTSUP" && code !== "EPERM")) throw error;
      }
    }
  };

  /** Owner first: chown(2) takes setuid bits and capabilities away. */
  const dress = (path: string, entry: TarEntry) => {
    lchownSync(at(path), entry.uid, entry.gid);
    if (entry.type !== "symlink") chmodSync(at(path), entry.mode);
    setXattrs(path, entry);
    if (entry.type === "directory") times.set(path, entry.mtime);
    else lutimesSync(at(path), entry.mtime, entry.mtime);
  };

  const whiteout = (name: string, parent: string, entry: TarEntry) => {
    if (name === OPAQUE_WHITEOUT) {
      linux.lsetxattr(at(parent), OPAQUE, Buffer.from("y"));
      return;
    }
    // Bookkeeping of AUFS.
    if (name.startsWith(".wh..wh.")) return;
    const hidden = name.slice(WHITEOUT.length);
    if (hidden === "" || hidden === "." || hidden === "..")
      throw hostile(entry, "hides nothing that has a name");
    const path = join(parent, hidden);
    const found = lstatSync(at(path), { throwIfNoEntry: false });
    // It hides what is below, never what this layer itself brings.
    if (found === undefined) linux.mknod(at(path), S_IFCHR, 0, 0);
    else if (found.isDirectory()) linux.lsetxattr(at(path), OPAQUE, Buffer.from("y"));
  };

  const hardLink = (path: string, entry: TarEntry) => {
    const parts = partsOf(entry.linkname, entry);
    const base = parts.pop();
    if (base === undefined) throw hostile(entry, "links to the root");
    const source = join(directory(parts, entry), base);
    if (source === path) return;
    const found = lstatSync(at(source), { throwIfNoEntry: false });
    if (found?.isDirectory() || (found && isWhiteout(found)))
      throw hostile(entry, "links to what is no file");
    // A layer may name a file of a layer below; layers never change, so they can share the file itself.
    const from = found ? at(source) : belowOf(source)?.path;
    if (from === undefined || lstatSync(from).isDirectory())
      throw hostile(entry, `links to ${JSON.stringify(entry.linkname)}, which is not there`);
    clear(path, false);
    linkSync(from, at(path));
  };

  const special = (path: string, entry: TarEntry) => {
    if (entry.type === "symlink") symlinkSync(Buffer.from(entry.linkname, "latin1"), at(path));
    else if (entry.type === "fifo") linux.mkfifo(at(path), 0o600);
    else {
      const kind = entry.type === "block-device" ? S_IFBLK : S_IFCHR;
      linux.mknod(at(path), kind | 0o600, entry.major, entry.minor);
    }
    dress(path, entry);
  };

  const closeFile = () => {
    if (file !== undefined) closeSync(file.fd);
    file = undefined;
  };

  return {
    entry(entry) {
      if (++entries > limits.entries)
        throw new RuntimeError(
          "resource-exhausted",
          `Cannot unpack layer: more than ${limits.entries} entries`,
        );
      if (entry.type === "file") bytes += entry.size;
      if (bytes > limits.bytes)
        throw new RuntimeError("resource-exhausted", `Cannot unpack layer: more than ${limits.bytes} bytes`);
      const parts = partsOf(entry.name, entry);
      const name = parts.pop();
      if (name === undefined) {
        if (entry.type !== "directory") throw hostile(entry, "would replace the root");
        dress("", entry);
        return;
      }
      const parent = directory(parts, entry);
      if (name.startsWith(WHITEOUT)) {
        whiteout(name, parent, entry);
        return;
      }
      const path = join(parent, name);
      if (entry.type === "link") {
        hardLink(path, entry);
        return;
      }
      const room = clear(path, entry.type === "directory");
      if (entry.type === "directory") {
        if (room !== "kept") mkdirSync(at(path), { mode: 0o700 });
        if (room === "whiteout") linux.lsetxattr(at(path), OPAQUE, Buffer.from("y"));
        real.add(path);
        dress(path, entry);
      } else if (entry.type === "file") {
        const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
        file = { fd: openSync(at(path), flags, 0o600), entry, path };
      } else special(path, entry);
    },

    data(chunk) {
      // A whiteout has a body at times; it goes nowhere.
      if (file === undefined) return;
      for (let done = 0; done < chunk.length; ) done += writeSync(file.fd, chunk, done);
    },

    end() {
      if (file === undefined) return;
      const { fd, entry, path } = file;
      fchownSync(fd, entry.uid, entry.gid);
      fchmodSync(fd, entry.mode);
      setXattrs(path, entry);
      futimesSync(fd, entry.mtime, entry.mtime);
      closeFile();
    },

    finish() {
      for (const [path, mtime] of times) lutimesSync(at(path), mtime, mtime);
    },

    abandon: closeFile,
  };
};

/** Parts of a name; "/" and "." say nothing, ".." is refused. */
const partsOf = (name: string, entry: TarEntry): string[] => {
  const parts = name.split("/").filter((part) => part !== "" && part !== ".");
  if (parts.includes("..")) throw hostile(entry, 'has ".." in its name');
  return parts;
};

const join = (parent: string, name: string) => (parent === "" ? name : `${parent}/${name}`);

const isWhiteout = (stat: Stats) => stat.isCharacterDevice() && stat.rdev === 0;
