import { closeSync } from "node:fs";
import { Socket } from "node:net";
import { endianness } from "node:os";
import koffi from "koffi";
import { check, libc } from "./libc.ts";

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const O_CLOEXEC = 0o2000000;
const TIOCSWINSZ = 0x5414;
const PIDFD_OPEN = 434;
const PIDFD_GETFD = 438;

const lib = koffi.load("libc.so.6");
const pipe2 = lib.func("int pipe2(void *, int)");
const socketpair = lib.func("int socketpair(int, int, int, void *)");
const dup3 = lib.func("int dup3(int, int, int)");

/** pipe2(2). Node's own "pipe" is a socket pair, which a container cannot open again as /dev/stdout. */
export const makePipe = (): { read: number; write: number } => {
  const fds = new Int32Array(2);
  check(pipe2(fds, O_CLOEXEC), "pipe2");
  return { read: fds[0]!, write: fds[1]! };
};

/**
 * Puts a socket of a type that Node does not know (SOCK_SEQPACKET) on Node's own event loop: libuv reads and writes
 * whatever stands at the descriptor, it only refuses to open it. So it opens one end of a stream pair, and the
 * descriptor is replaced before the loop ever looked at it. Each read gives one packet, each write makes one.
 * Takes `fd` over. The socket comes paused.
 */
export const adoptSocket = (fd: number): Socket => {
  const pair = new Int32Array(2);
  try {
    check(socketpair(AF_UNIX, SOCK_STREAM | O_CLOEXEC, 0, pair), "socketpair");
    try {
      const options = { fd: pair[0]!, readable: true, writable: true, allowHalfOpen: true };
      const socket = new Socket({ ...options, pauseOnCreate: true } as typeof options);
      const replaced = dup3(fd, pair[0]!, O_CLOEXEC);
      if (replaced < 0) socket.destroy();
      check(replaced, "dup3");
      return socket;
    } finally {
      closeSync(pair[1]!);
    }
  } finally {
    closeSync(fd);
  }
};

/** A duplicate of descriptor `fd` of another process (pidfd_getfd(2), Linux 5.6). */
export const takeDescriptor = (pid: number, fd: number): number => {
  const process = check(libc.syscall(PIDFD_OPEN, "int", pid, "uint", 0), "pidfd_open");
  try {
    return check(libc.syscall(PIDFD_GETFD, "int", process, "int", fd, "uint", 0), "pidfd_getfd");
  } finally {
    closeSync(process);
  }
};

/** Sets the size of a terminal; its foreground process group gets SIGWINCH. */
export const setWindowSize = (fd: number, width: number, height: number): void => {
  const size = new DataView(new ArrayBuffer(8));
  const little = endianness() === "LE";
  size.setUint16(0, height, little);
  size.setUint16(2, width, little);
  check(libc.ioctl(fd, TIOCSWINSZ, new Uint8Array(size.buffer)), "ioctl TIOCSWINSZ");
};
