import { closeSync, constants, openSync, readSync, statfsSync, writeSync } from "node:fs";
import { open } from "node:fs/promises";
import { isIPv6 } from "node:net";
import { endianness, networkInterfaces, constants as os } from "node:os";
import { basename, dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import koffi from "koffi";
import { check, cstring, errnoError, libc, offThread, sys } from "./libc.ts";
import { type FilePath, type Linux, MountFlags } from "./linux.ts";
import { acknowledged, newAddress } from "./netlink.ts";
import { readProcess } from "./process.ts";

const AF_UNIX = 1;
const AF_INET = 2;
const AF_INET6 = 10;
const AF_NETLINK = 16;
const SOCK_STREAM = 1;
const SOCK_DGRAM = 2;
const SOCK_RAW = 3;
const SOCK_SEQPACKET = 5;
/* O_NONBLOCK and O_CLOEXEC, which SOCK_NONBLOCK and SOCK_CLOEXEC equal. */
const SOCK_FLAGS = 0o4000 | 0o2000000;
const SOL_SOCKET = 1;
const SO_ERROR = 4;
const POLLOUT = 4;
const O_PATH = 0o10000000;
const SIOCGIFFLAGS = 0x8913;
const SIOCSIFFLAGS = 0x8914;
const SIOCGIFINDEX = 0x8933;
const SIOCBRADDBR = 0x89a0;
const IFF_UP = 1;
const PR_SET_CHILD_SUBREAPER = 36;
const SPLICE_F_NONBLOCK = 2;
const FSCONFIG_SET_FLAG = 0;
const FSCONFIG_SET_STRING = 1;
const FSCONFIG_CMD_CREATE = 6;
const MOVE_MOUNT_F_EMPTY_PATH = 4;
const CLOEXEC = 1;
const OPEN_TREE_CLONE = 1;
const OPEN_TREE_CLOEXEC = 0o2000000;
const AT_EMPTY_PATH = 0x1000;
const MOUNT_ATTR_IDMAP = 0x100000n;
const MOUNT_ATTR_RDONLY = 1n;
const AT_FDCWD = -100;
const CLONE = { net: 0x40000000, ipc: 0x08000000, uts: 0x04000000 } as const;
const DIAL_TIMEOUT_MS = 5_000;

/** The kernel of this machine. */
export const createLinux = (): Linux => ({
  async mount(source, target, type, flags, data) {
    // Straight from the main thread: 0.05 ms, a third of what a trip to another thread takes, and nothing
    // that we mount (bind, overlay, tmpfs, proc) waits for a device.
    check(libc.mount(cstring(source), cstring(target), cstring(type), flags, cstring(data)), "mount", target);
  },

  mountWith(type, parameters, target, flags) {
    const fs = check(libc.syscall(sys.fsopen, "str", cstring(type), "uint", CLOEXEC), "fsopen", type);
    try {
      for (const [key, value] of parameters)
        if (value === "") fsconfig(fs, FSCONFIG_SET_FLAG, cstring(key), null, target);
        else fsconfig(fs, FSCONFIG_SET_STRING, cstring(key), cstring(value), target);
      fsconfig(fs, FSCONFIG_CMD_CREATE, null, null, target);
      const mnt = check(
        libc.syscall(sys.fsmount, "int", fs, "uint", CLOEXEC, "uint", mountAttributes(flags)),
        "fsmount",
        target,
      );
      try {
        attach(mnt, target);
      } finally {
        closeSync(mnt);
      }
    } finally {
      closeSync(fs);
    }
  },

  async umount(target, flags) {
    // Off the main thread: the last unmount of a file system writes its dirty data out.
    await offThread(libc.umount2, "umount2", target, cstring(target), flags);
  },

  mountIdMapped(source, userNamespace, target) {
    const tree = idMappedTree(source, userNamespace);
    try {
      attach(tree, target);
    } finally {
      closeSync(tree);
    }
  },

  canIdMap(path, userNamespace) {
    try {
      closeSync(idMappedTree(path, userNamespace));
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).syscall === "mount_setattr") return false;
      throw error;
    }
  },

  mknod(path, mode, major, minor) {
    check(libc.mknod(cpath(path), mode, deviceNumber(major, minor)), "mknod", shown(path));
  },

  mkfifo(path, mode) {
    check(libc.mkfifo(cpath(path), mode), "mkfifo", shown(path));
  },

  lsetxattr(path, name, value) {
    check(libc.lsetxattr(cpath(path), cstring(name), value, value.byteLength, 0), "lsetxattr", shown(path));
  },

  async changeXattr(path, name, value) {
    const file = cpath(path);
    await offThread(
      libc.lsetxattr,
      "lsetxattr",
      shown(path),
      file,
      cstring(name),
      value,
      value.byteLength,
      0,
    );
  },

  lgetxattr(path, name) {
    // XATTR_SIZE_MAX; one call, so that a value that grows meanwhile cannot be cut off.
    const value = Buffer.alloc(65536);
    const length = libc.lgetxattr(cpath(path), cstring(name), value, value.length);
    if (length >= 0) return new Uint8Array(value.subarray(0, length));
    const errno = koffi.errno();
    if (errno === ENODATA) return undefined;
    throw errnoError(errno, "lgetxattr", shown(path));
  },

  async pinNamespaces(files, hostname) {
    const kinds = (["net", "ipc", "uts"] as const).filter((kind) => files[kind] !== undefined);
    if (kinds.length === 0) return;
    aside(kinds, () => {
      check(libc.unshare(kinds.reduce((flags, kind) => flags | CLONE[kind], 0)), "unshare");
      if (files.uts !== undefined)
        check(libc.sethostname(cstring(hostname), Buffer.byteLength(hostname)), "sethostname");
      if (files.net !== undefined) {
        const socket = inetSocket();
        try {
          setUp(socket, "lo");
        } finally {
          closeSync(socket);
        }
      }
      for (const kind of kinds) {
        const file = cstring(files[kind]!);
        check(libc.mount(`/proc/thread-self/ns/${kind}`, file, "", MountFlags.BIND, ""), "mount", file);
      }
    });
  },

  async dialIn(netns, host, port) {
    const v4 = host === "127.0.0.1";
    const socket = within(netns, () =>
      check(libc.socket(v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_FLAGS, 0), "socket"),
    );
    try {
      await connected(socket, v4 ? sockaddrIn(port) : sockaddrIn6(port), `${host}:${port}`);
      return socket;
    } catch (error) {
      closeSync(socket);
      throw error;
    }
  },

  linkUp(netns, name) {
    // A socket stays in the namespace it was made in, so the ioctl may run after coming back.
    const socket = within(netns, inetSocket);
    try {
      setUp(socket, name);
    } finally {
      closeSync(socket);
    }
  },

  addAddress(netns, name, cidr) {
    const [address = "", prefix = ""] = cidr.split("/");
    const bytes = Buffer.alloc(isIPv6(address) ? 16 : 4);
    const family = isIPv6(address) ? AF_INET6 : AF_INET;
    if (!/^\d{1,3}$/.test(prefix) || libc.inet_pton(family, cstring(address), bytes) !== 1)
      throw errnoError(os.errno.EINVAL, "inet_pton", cidr);
    const [control, netlink] = within(netns, () => {
      const first = inetSocket();
      try {
        return [first, check(libc.socket(AF_NETLINK, SOCK_RAW | SOCK_FLAGS, 0), "socket")] as const;
      } catch (error) {
        closeSync(first);
        throw error;
      }
    });
    try {
      writeSync(netlink, newAddress(indexOf(control, name), bytes, Number(prefix)));
      // The kernel acts on the request before write(2) returns: the answer is there.
      const reply = Buffer.alloc(1024);
      const errno = acknowledged(reply.subarray(0, readSync(netlink, reply)));
      if (errno !== 0 && errno !== os.errno.EEXIST) throw errnoError(errno, "RTM_NEWADDR", cidr);
    } finally {
      closeSync(netlink);
      closeSync(control);
    }
  },

  addresses(netns, name) {
    const found = within(netns, networkInterfaces)[name] ?? [];
    return found.flatMap(({ cidr }) => cidr ?? []);
  },

  addBridge(netns, name) {
    const socket = within(netns, inetSocket);
    try {
      // The kernel takes the first IFNAMSIZ bytes of what it is given for the name.
      const result = libc.ioctl(socket, SIOCBRADDBR, interfaceRequest(name));
      if (result < 0 && koffi.errno() !== os.errno.EEXIST) throw errnoError(koffi.errno(), "ioctl", name);
    } finally {
      closeSync(socket);
    }
  },

  connectUnix(path, type) {
    const socket = check(
      libc.socket(AF_UNIX, (type === "stream" ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_FLAGS, 0),
      "socket",
    );
    let directory: number | undefined;
    try {
      let short = cstring(path);
      if (Buffer.byteLength(short) > SUN_PATH_MAX) {
        directory = openSync(dirname(path), O_PATH | constants.O_DIRECTORY);
        short = `/proc/self/fd/${directory}/${basename(path)}`;
      }
      const address = sockaddrUn(short);
      check(libc.connect(socket, address, address.length), "connect", path);
      return socket;
    } catch (error) {
      closeSync(socket);
      throw error;
    } finally {
      if (directory !== undefined) closeSync(directory);
    }
  },

  kill(pid, startTime, signo) {
    const pidfd = libc.syscall(sys.pidfd_open, "int", pid, "uint", 0);
    if (pidfd < 0) {
      const errno = koffi.errno();
      // EINVAL: the number is now that of a thread, so the process is gone.
      if (errno === os.errno.ESRCH || errno === os.errno.EINVAL) return false;
      throw errnoError(errno, "pidfd_open");
    }
    try {
      // The pidfd holds on to one process; if its start time is right it is the one that was meant.
      if (readProcess(pid)?.startTime !== startTime) return false;
      const sent = libc.syscall(
        sys.pidfd_send_signal,
        ...["int", pidfd, "int", signo, "void *", null, "uint", 0],
      );
      if (sent === 0) return true;
      const errno = koffi.errno();
      if (errno === os.errno.ESRCH) return false;
      throw errnoError(errno, "pidfd_send_signal");
    } finally {
      closeSync(pidfd);
    }
  },

  setSubreaper() {
    check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl");
  },

  tee(fdIn, fdOut, length) {
    return check(libc.tee(fdIn, fdOut, length, SPLICE_F_NONBLOCK), "tee");
  },

  splice(pipe, file, offset, length) {
    const at = Buffer.alloc(8);
    at.writeBigInt64LE(BigInt(offset));
    return check(libc.splice(pipe, null, file, at, length, SPLICE_F_NONBLOCK), "splice");
  },

  statfs(path) {
    const { type, bsize, blocks, bavail, files, ffree } = statfsSync(path, { bigint: true });
    return {
      type: Number(type),
      blockSize: Number(bsize),
      blocks,
      available: bavail,
      files,
      filesFree: ffree,
    };
  },

  async fsync(path) {
    await using handle = await open(path, constants.O_RDONLY);
    await handle.sync();
  },

  async syncfs(path) {
    await using handle = await open(path, constants.O_RDONLY);
    await offThread(libc.syncfs, "syncfs", path, handle.fd);
  },
});

/** A copy of the mount that `source` is on, from there on, attached nowhere, with its owners shifted. */
const idMappedTree = (source: string, userNamespace: string): number => {
  const tree = check(
    libc.syscall(
      sys.open_tree,
      ...["int", AT_FDCWD, "str", cstring(source), "uint", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC],
    ),
    "open_tree",
    source,
  );
  try {
    const namespace = openSync(userNamespace, constants.O_RDONLY);
    try {
      // struct mount_attr: attr_set, attr_clr, propagation, userns_fd.
      const attributes = new BigUint64Array([
        MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY,
        0n,
        0n,
        BigInt(namespace),
      ]);
      const bytes = Buffer.from(attributes.buffer);
      check(
        libc.syscall(
          sys.mount_setattr,
          ...["int", tree, "str", "", "uint", AT_EMPTY_PATH, "void *", bytes, "size_t", bytes.length],
        ),
        "mount_setattr",
        source,
      );
      return tree;
    } finally {
      closeSync(namespace);
    }
  } catch (error) {
    closeSync(tree);
    throw error;
  }
};

/** Attaches a mount that a descriptor holds. */
const attach = (mnt: number, target: string): void => {
  check(
    libc.syscall(
      sys.move_mount,
      ...["int", mnt, "str", "", "int", AT_FDCWD, "str", cstring(target)],
      ...["uint", MOVE_MOUNT_F_EMPTY_PATH],
    ),
    "move_mount",
    target,
  );
};

/** The path as C wants it: bytes end with a NUL, and have none before. */
const cpath = (path: FilePath): string | Uint8Array => {
  if (typeof path === "string") return cstring(path);
  if (path.includes(0)) throw errnoError(os.errno.EINVAL, "path", shown(path));
  return Buffer.concat([path, Buffer.alloc(1)]);
};
const shown = (path: FilePath): string => (typeof path === "string" ? path : Buffer.from(path).toString());

const ENODATA = os.errno.ENODATA;
const SUN_PATH_MAX = 107;

/**
 * Runs `work` on this very thread with its namespaces saved, and comes back to them. Synchronous from end to end:
 * nothing else can run, nor can a thread be born, in the other namespaces. A thread that cannot come back must
 * not live on: it would do the host's work inside a pod.
 */
const aside = <T>(kinds: readonly ("net" | "ipc" | "uts")[], work: () => T): T => {
  const own: number[] = [];
  try {
    for (const kind of kinds) own.push(openSync(`/proc/thread-self/ns/${kind}`, constants.O_RDONLY));
    try {
      return work();
    } finally {
      for (const fd of own) if (libc.setns(fd, 0) !== 0) process.abort();
    }
  } finally {
    for (const fd of own) closeSync(fd);
  }
};

/** Runs `work` inside the network namespace at `netns`; "" is the one we are in. */
const within = <T>(netns: string, work: () => T): T => {
  if (netns === "") return work();
  const target = openSync(netns, constants.O_RDONLY);
  try {
    return aside(["net"], () => {
      check(libc.setns(target, CLONE.net), "setns", netns);
      return work();
    });
  } finally {
    closeSync(target);
  }
};

const inetSocket = () => check(libc.socket(AF_INET, SOCK_DGRAM | SOCK_FLAGS, 0), "socket");

/** struct ifreq of netdevice(7) with the interface's name. */
const interfaceRequest = (name: string): Buffer => {
  if (Buffer.byteLength(name) > 15) throw errnoError(os.errno.EINVAL, "ioctl", name);
  const request = Buffer.alloc(40);
  request.write(cstring(name), 0, "utf8");
  return request;
};

const indexOf = (socket: number, name: string): number => {
  const request = interfaceRequest(name);
  check(libc.ioctl(socket, SIOCGIFINDEX, request), "ioctl", name);
  return readInt(request, 16);
};

/** Reads the flags of the interface and writes them back with IFF_UP. */
const setUp = (socket: number, name: string) => {
  const request = interfaceRequest(name);
  check(libc.ioctl(socket, SIOCGIFFLAGS, request), "ioctl", name);
  writeShort(request, readShort(request, 16) | IFF_UP, 16);
  check(libc.ioctl(socket, SIOCSIFFLAGS, request), "ioctl", name);
};

/**
 * Connects a non-blocking socket. On loopback the handshake is over when connect(2) returns, so the first look
 * mostly settles it; a full backlog is waited for on a timer, which costs no thread.
 */
const connected = async (socket: number, address: Buffer, name: string): Promise<void> => {
  if (libc.connect(socket, address, address.length) === 0) return;
  const errno = koffi.errno();
  if (errno !== os.errno.EINPROGRESS) throw errnoError(errno, "connect", name);
  const deadline = performance.now() + DIAL_TIMEOUT_MS;
  const pollfd = Buffer.alloc(8);
  for (let wait = 1; ; wait = Math.min(wait * 2, 50)) {
    writeInt(pollfd, socket, 0);
    writeShort(pollfd, POLLOUT, 4);
    writeShort(pollfd, 0, 6);
    if (check(libc.poll(pollfd, 1, 0), "poll", name) > 0) break;
    if (performance.now() > deadline) throw errnoError(os.errno.ETIMEDOUT, "connect", name);
    await sleep(wait);
  }
  const value = Buffer.alloc(4);
  const length = Buffer.alloc(4);
  writeInt(length, 4, 0);
  check(libc.getsockopt(socket, SOL_SOCKET, SO_ERROR, value, length), "getsockopt", name);
  const failed = readInt(value, 0);
  if (failed !== 0) throw errnoError(failed, "connect", name);
};

const little = endianness() === "LE";
const writeShort = (buffer: Buffer, value: number, at: number) =>
  little ? buffer.writeInt16LE(value, at) : buffer.writeInt16BE(value, at);
const readShort = (buffer: Buffer, at: number) => (little ? buffer.readInt16LE(at) : buffer.readInt16BE(at));
const writeInt = (buffer: Buffer, value: number, at: number) =>
  little ? buffer.writeInt32LE(value, at) : buffer.writeInt32BE(value, at);
const readInt = (buffer: Buffer, at: number) => (little ? buffer.readInt32LE(at) : buffer.readInt32BE(at));

const sockaddrIn = (port: number): Buffer => {
  const address = Buffer.alloc(16);
  writeShort(address, AF_INET, 0);
  address.writeUInt16BE(port, 2);
  address.set([127, 0, 0, 1], 4);
  return address;
};

const sockaddrIn6 = (port: number): Buffer => {
  const address = Buffer.alloc(28);
  writeShort(address, AF_INET6, 0);
  address.writeUInt16BE(port, 2);
  address[23] = 1;
  return address;
};

const sockaddrUn = (path: string): Buffer => {
  const bytes = Buffer.from(path);
  if (bytes.length > SUN_PATH_MAX) throw errnoError(os.errno.ENAMETOOLONG, "connect", path);
  const address = Buffer.alloc(2 + bytes.length + 1);
  writeShort(address, AF_UNIX, 0);
  bytes.copy(address, 2);
  return address;
};

/** makedev(3) of glibc. */
const deviceNumber = (major: number, minor: number): bigint => {
  const [a, b] = [BigInt(major), BigInt(minor)];
  return ((a & 0xfffff000n) << 32n) | ((a & 0xfffn) << 8n) | ((b & 0xffffff00n) << 12n) | (b & 0xffn);
};

const fsconfig = (
  fs: number,
  command: number,
  key: string | null,
  value: string | null,
  target: string,
): void => {
  const result = libc.syscall(
    sys.fsconfig,
    ...["int", fs, "uint", command, "str", key, "str", value, "int", 0],
  );
  if (result >= 0) return;
  const errno = koffi.errno();
  throw Object.assign(errnoError(errno, "fsconfig", target), { parameter: key, log: messagesOf(fs) });
};

/** What the file system says about the parameters: one message a read, until its log is empty (ENODATA). */
const messagesOf = (fs: number): string[] => {
  const lines: string[] = [];
  try {
    const line = Buffer.alloc(1024);
    while (lines.length < 16) lines.push(line.toString("utf8", 0, readSync(fs, line)).trim());
  } catch {
    // The log is at its end.
  }
  return lines;
};

/** MOUNT_ATTR_* have the values of the first four MS_* flags. */
const mountAttributes = (flags: number): number =>
  flags & (MountFlags.RDONLY | MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC);
