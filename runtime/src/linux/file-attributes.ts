import { constants } from "node:os";
import koffi from "koffi";
import { check, cstring, errnoError, libc } from "./libc.ts";

/* Attributes of files that Node's API has not, or not exactly: times in nanoseconds, extended attributes. */

const own = koffi.load("libc.so.6");
const utimensat = own.func("int utimensat(int, const char *, const void *, int)");
const futimens = own.func("int futimens(int, const void *)");
const llistxattr = own.func("intptr_t llistxattr(const char *, void *, size_t)");

const AT_FDCWD = -100;
const AT_SYMLINK_NOFOLLOW = 0x100;
const OPAQUE = "trusted.overlay.opaque";
const REDIRECT = "trusted.overlay.redirect";

const words = new BigInt64Array(4);
const timesOf = (mtime: bigint): BigInt64Array => {
  // Rounded down: the fraction is never negative.
  const nanoseconds = ((mtime % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n;
  const seconds = (mtime - nanoseconds) / 1_000_000_000n;
  words[0] = words[2] = seconds;
  words[1] = words[3] = nanoseconds;
  return words;
};

/** Sets both times of a file, of a symbolic link itself. `path` ends with a NUL. */
export const setTimes = (path: Uint8Array, mtime: bigint): void => {
  check(utimensat(AT_FDCWD, path, timesOf(mtime), AT_SYMLINK_NOFOLLOW), "utimensat", shown(path));
};

/** Sets both times of an open file. */
export const setTimesOf = (fd: number, mtime: bigint): void => {
  check(futimens(fd, timesOf(mtime)), "futimens");
};

const XATTR_MAX = 65536;

/** All extended attributes but those that steer overlayfs or are the host's labels. */
export const readXattrs = (path: Uint8Array): Map<string, Uint8Array> => {
  const found = new Map<string, Uint8Array>();
  const file = withNul(path);
  const list = Buffer.alloc(XATTR_MAX);
  const length = llistxattr(file, list, list.length);
  if (length < 0) {
    if (isUnsupported(koffi.errno())) return found;
    throw errnoError(koffi.errno(), "llistxattr", shown(path));
  }
  for (const name of list.toString("latin1", 0, length).split("\0")) {
    if (name === "" || name.startsWith("trusted.") || name === "security.selinux") continue;
    const value = readXattr(file, name);
    if (value !== undefined) found.set(name, value);
  }
  return found;
};

/** True when overlayfs shows nothing of the layers below this directory. */
export const isOpaque = (path: Uint8Array): boolean => readXattr(withNul(path), OPAQUE)?.[0] === 0x79;

/** True when overlayfs shows below this directory what a layer has at another path. */
export const isRedirected = (path: Uint8Array): boolean => readXattr(withNul(path), REDIRECT) !== undefined;

const readXattr = (file: Uint8Array, name: string): Uint8Array | undefined => {
  const value = Buffer.alloc(XATTR_MAX);
  const length = libc.lgetxattr(file, cstring(name), value, value.length);
  if (length >= 0) return Uint8Array.prototype.slice.call(value, 0, length);
  const errno = koffi.errno();
  if (errno === constants.errno.ENODATA || isUnsupported(errno)) return undefined;
  throw errnoError(errno, "lgetxattr", shown(file));
};

const isUnsupported = (errno: number) => errno === constants.errno.EOPNOTSUPP;
const withNul = (path: Uint8Array) => Buffer.concat([path, Buffer.alloc(1)]);
const shown = (path: Uint8Array) => Buffer.from(path).toString().replace(/\0$/, "");
