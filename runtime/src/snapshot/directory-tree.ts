import {
  chmodSync,
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  ftruncateSync,
  lchownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { setTimes, setTimesOf } from "../linux/file-attributes.ts";
import type { Linux } from "../linux/linux.ts";
import type { Attributes, Kind, LayerTree } from "./layer-tree.ts";

const S_IFCHR = 0o020000;
const S_IFBLK = 0o060000;
const OPAQUE = "trusted.overlay.opaque";
const BLOCK = 4096;

/** A layer as a directory that overlayfs takes as it is. `root` is empty and nobody else touches it. */
export const createDirectoryTree = (
  directory: string,
  linux: Pick<Linux, "mknod" | "mkfifo" | "lsetxattr">,
): LayerTree => {
  const root = Buffer.from(directory).toString("latin1");
  /** Times of directories are set last: each file made in one changes them. */
  const times = new Map<string, bigint>();
  let file: { fd: number; path: string; size: number; written: number } | undefined;
  let bytes = 0;
  let inodes = 1;
  chmodSync(directory, 0o755);

  const at = (path: string) => Buffer.from(path === "" ? root : `${root}/${path}`, "latin1");
  const made = () => {
    inodes++;
  };

  const setXattrs = (path: string, xattrs: Attributes["xattrs"]) => {
    for (const [name, value] of xattrs) {
      try {
        linux.lsetxattr(at(path), name, value);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        const isCapability = name === "security.capability";
        if (isCapability || (code !== "EOPNOTSUPP" && code !== "ENOTSUP" && code !== "EPERM")) throw error;
      }
    }
  };

  return {
    kindOf(path): Kind | undefined {
      const found = lstatSync(at(path), { throwIfNoEntry: false });
      if (found === undefined) return undefined;
      if (found.isDirectory()) return "directory";
      if (found.isSymbolicLink()) return "symlink";
      return found.isCharacterDevice() && found.rdev === 0 ? "whiteout" : "other";
    },

    readlink: (path) => readlinkSync(at(path), "latin1"),

    mkdir(path) {
      mkdirSync(at(path), { mode: 0o755 });
      // A directory of setgid gives its group away, and the umask is the daemon's.
      lchownSync(at(path), 0, 0);
      chmodSync(at(path), 0o755);
      times.delete(path);
      bytes += BLOCK;
      made();
    },

    setOpaque: (path) => linux.lsetxattr(at(path), OPAQUE, Buffer.from("y")),

    whiteout(path) {
      linux.mknod(at(path), S_IFCHR, 0, 0);
      made();
    },

    symlink(path, to, { uid, gid, mtime, xattrs }) {
      symlinkSync(Buffer.from(to, "latin1"), at(path));
      lchownSync(at(path), uid, gid);
      setXattrs(path, xattrs);
      setTimes(withNul(at(path)), mtime);
      made();
    },

    special(path, { type, major, minor }, attributes) {
      if (type === "fifo") linux.mkfifo(at(path), 0o600);
      else linux.mknod(at(path), (type === "block-device" ? S_IFBLK : S_IFCHR) | 0o600, major, minor);
      this.dress(path, attributes);
      times.delete(path);
      setTimes(withNul(at(path)), attributes.mtime);
      made();
    },

    link: (path, to) => linkSync(at(path), at(to)),

    remove(path) {
      times.delete(path);
      const found = lstatSync(at(path));
      if (found.isDirectory()) rmSync(at(path), { recursive: true });
      else unlinkSync(at(path));
    },

    dress(path, { uid, gid, mode, mtime, xattrs }) {
      // Owner first: chown(2) takes setuid bits and capabilities away.
      lchownSync(at(path), uid, gid);
      chmodSync(at(path), mode);
      setXattrs(path, xattrs);
      times.set(path, mtime);
    },

    open(path, size) {
      const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
      try {
        file = { fd: openSync(at(path), flags, 0o600), path, size, written: 0 };
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
        throw error;
      }
      made();
      return true;
    },

    write(chunk, offset) {
      const { fd } = file!;
      for (let done = 0; done < chunk.length; )
        done += writeSync(fd, chunk, done, chunk.length - done, offset + done);
      file!.written = offset + chunk.length;
      bytes += chunk.length;
    },

    close({ uid, gid, mode, mtime, xattrs }) {
      const { fd, path, size, written } = file!;
      // A hole at the end.
      if (written < size) ftruncateSync(fd, size);
      fchownSync(fd, uid, gid);
      fchmodSync(fd, mode);
      if (xattrs.size > 0) setXattrs(path, xattrs);
      setTimesOf(fd, mtime);
      closeSync(fd);
      file = undefined;
      bytes += (BLOCK - (bytes % BLOCK)) % BLOCK;
    },

    copiesUp: false,
    // Layers never change, so they can share the file itself.
    linkBelow: (path, _source, from) => linkSync(from as Buffer, at(path)),

    seal() {
      // A name noted early may since lead through a symbolic link, out of here.
      const real = new Set<string>([""]);
      const isReal = (path: string): boolean => {
        if (real.has(path)) return true;
        if (!isReal(path.slice(0, Math.max(0, path.lastIndexOf("/"))))) return false;
        if (!lstatSync(at(path), { throwIfNoEntry: false })?.isDirectory()) return false;
        real.add(path);
        return true;
      };
      for (const [path, mtime] of times) if (isReal(path)) setTimes(withNul(at(path)), mtime);
      return { bytes, inodes };
    },

    abandon() {
      if (file !== undefined) closeSync(file.fd);
      file = undefined;
    },
  };
};

const withNul = (path: Buffer) => Buffer.concat([path, Buffer.alloc(1)]);
