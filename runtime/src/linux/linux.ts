/**
 * The kernel calls that Node has no API for, by FFI (koffi). Errors are thrown as NodeJS.ErrnoException with
 * code, errno and syscall set, like node:fs does. Calls that may block run off the main thread and return promises.
 */
export interface Linux {
  /** mount(2). `flags` from {@link MountFlags}. */
  mount(source: string, target: string, type: string, flags: number, data: string): Promise<void>;
  /**
   * mount(2) by fsopen, fsconfig and move_mount: has no limit of one page on the options, and a key may come
   * again (overlayfs `lowerdir+`, Linux 6.8). A key with the value "" is a flag. `flags` as for {@link Linux.mount}.
   */
  mountWith(type: string, parameters: [key: string, value: string][], target: string, flags: number): void;
  umount(target: string, flags: number): Promise<void>;
  /**
   * Mounts the directory `source` read-only on `target` with its owners shifted as the user namespace at `userNamespace` maps
   * them (mount_setattr(2), MOUNT_ATTR_IDMAP). EINVAL: its file system cannot be.
   */
  mountIdMapped(source: string, userNamespace: string, target: string): void;
  /** True when the file system that `path` is on can be shifted that way. */
  canIdMap(path: string, userNamespace: string): boolean;
  /** mknod(2); mode includes the type bits. */
  mknod(path: FilePath, mode: number, major: number, minor: number): void;
  mkfifo(path: FilePath, mode: number): void;
  lsetxattr(path: FilePath, name: string, value: Uint8Array): void;
  /** lsetxattr(2) off the main thread, for file systems of others, which may be slow. */
  changeXattr(path: FilePath, name: string, value: Uint8Array): Promise<void>;
  lgetxattr(path: FilePath, name: string): Uint8Array | undefined;
  /**
   * Makes the namespaces and bind-mounts them on files, which must exist. Hostname and loopback are set before
   * the first file is mounted, so a pinned namespace is a finished one.
   */
  pinNamespaces(files: { net?: string; ipc?: string; uts?: string }, hostname: string): Promise<void>;
  /** A connected TCP socket (non-blocking fd) made inside the network namespace at `netns`. */
  dialIn(netns: string, host: "127.0.0.1" | "::1", port: number): Promise<number>;
  /** Sets the interface up inside the network namespace at `netns`. */
  linkUp(netns: string, name: string): void;
  /** Adds an address ("10.1.2.3/24") to the interface inside the network namespace; one that is there stays. */
  addAddress(netns: string, name: string, cidr: string): void;
  /** Addresses with their prefix lengths of an interface that is up inside the network namespace; none when it is gone. */
  addresses(netns: string, name: string): string[];
  /** Makes an empty bridge inside the network namespace, unless it has an interface of that name. */
  addBridge(netns: string, name: string): void;
  /** A connected, non-blocking AF_UNIX socket of type stream or seqpacket; a long path goes through /proc/self/fd. */
  connectUnix(path: string, type: "stream" | "seqpacket"): number;
  /** Kills by pidfd: true when the process with that start time got the signal. */
  kill(pid: number, startTime: bigint, signo: number): boolean;
  setSubreaper(): void;
  /** tee(2): copies up to `length` bytes between pipes without consuming them; 0 at end of file, EAGAIN when it would block. */
  tee(fdIn: number, fdOut: number, length: number): number;
  /** splice(2): moves up to `length` bytes of a pipe into a file, at `offset`; EAGAIN when there are none. */
  splice(pipe: number, file: number, offset: number, length: number): number;
  statfs(path: string): {
    type: number;
    blockSize: number;
    blocks: bigint;
    available: bigint;
    files: bigint;
    filesFree: bigint;
  };
  fsync(path: string): Promise<void>;
  /** syncfs(2): writes out the whole file system that `path` is on. */
  syncfs(path: string): Promise<void>;
}

/** A name as text, or the bytes of one that is not UTF-8. */
export type FilePath = string | Uint8Array;

/** Flags of mount(2) and umount2(2). */
export const MountFlags = {
  RDONLY: 0x1,
  NOSUID: 0x2,
  NODEV: 0x4,
  NOEXEC: 0x8,
  REMOUNT: 0x20,
  BIND: 0x1000,
  MOVE: 0x2000,
  REC: 0x4000,
  UNBINDABLE: 0x20000,
  PRIVATE: 0x40000,
  SLAVE: 0x80000,
  SHARED: 0x100000,
  DETACH: 0x2,
  /** Of umount2: a symbolic link is not followed. */
  NOFOLLOW: 0x8,
} as const;
