import { constants } from "node:os";
import { getSystemErrorMap } from "node:util";
import koffi from "koffi";

/** What libc gives us by name. glibc's soname is the same on every architecture. */
const lib = koffi.load("libc.so.6");

/* A pointer argument takes a Buffer, a string or null; `size_t` and `long` take numbers. */
export const libc = {
  mount: lib.func("int mount(const char *, const char *, const char *, unsigned long, const char *)"),
  umount2: lib.func("int umount2(const char *, int)"),
  mknod: lib.func("int mknod(const char *, uint, uint64_t)"),
  mkfifo: lib.func("int mkfifo(const char *, uint)"),
  lsetxattr: lib.func("int lsetxattr(const char *, const char *, const void *, size_t, int)"),
  lgetxattr: lib.func("intptr_t lgetxattr(const char *, const char *, void *, size_t)"),
  unshare: lib.func("int unshare(int)"),
  setns: lib.func("int setns(int, int)"),
  sethostname: lib.func("int sethostname(const char *, size_t)"),
  socket: lib.func("int socket(int, int, int)"),
  connect: lib.func("int connect(int, const void *, uint)"),
  getsockopt: lib.func("int getsockopt(int, int, int, void *, void *)"),
  inet_pton: lib.func("int inet_pton(int, const char *, void *)"),
  ioctl: lib.func("int ioctl(int, ulong, void *)"),
  poll: lib.func("int poll(void *, ulong, int)"),
  syncfs: lib.func("int syncfs(int)"),
  prctl: lib.func("int prctl(int, ulong, ulong, ulong, ulong)"),
  mallopt: lib.func("int mallopt(int, int)"),
  malloc_trim: lib.func("int malloc_trim(size_t)"),
  madvise: lib.func("int madvise(uintptr_t, size_t, int)"),
  tee: lib.func("intptr_t tee(int, int, size_t, uint)"),
  splice: lib.func("intptr_t splice(int, void *, int, void *, size_t, uint)"),
  /** For calls younger than the oldest glibc we run on. */
  syscall: lib.func("long syscall(long, ...)"),
};

/** Numbers of system calls from 424 on are the same on every architecture. */
export const sys = {
  pidfd_send_signal: 424,
  open_tree: 428,
  move_mount: 429,
  fsopen: 430,
  fsconfig: 431,
  fsmount: 432,
  pidfd_open: 434,
  mount_setattr: 442,
} as const;

/** The error that node:fs would throw for `errno`. */
export const errnoError = (errno: number, syscall: string, path?: string): NodeJS.ErrnoException => {
  const [code, text] = getSystemErrorMap().get(-errno) ?? [`ERRNO_${errno}`, "unknown error"];
  const where = path === undefined ? "" : ` '${path}'`;
  return Object.assign(new Error(`${code}: ${text}, ${syscall}${where}`), {
    errno: -errno,
    code,
    syscall,
    ...(path === undefined ? {} : { path }),
  });
};

/** Throws errno of the call just made when its result is negative. */
export const check = (result: number, syscall: string, path?: string): number => {
  if (result < 0) throw errnoError(koffi.errno(), syscall, path);
  return result;
};

type AsyncFunction = { async: (...args: unknown[]) => void };

/** Makes the call on a thread of libuv's pool; koffi keeps its errno for the callback. */
export const offThread = (fn: AsyncFunction, syscall: string, path: string, ...args: unknown[]) =>
  new Promise<number>((resolve, reject) => {
    fn.async(...args, (error: unknown, result: number) => {
      if (error) reject(error instanceof Error ? error : new Error(String(error)));
      else if (result < 0) reject(errnoError(koffi.errno(), syscall, path));
      else resolve(result);
    });
  });

/** A path with a NUL byte would name another file in C. */
export const cstring = (value: string): string => {
  if (value.includes("\0"))
    throw Object.assign(new Error(`EINVAL: NUL byte in '${value.replaceAll("\0", "\\0")}'`), {
      code: "EINVAL",
      errno: -constants.errno.EINVAL,
    });
  return value;
};
