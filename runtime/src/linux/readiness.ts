import { writeSync } from "node:fs";
import koffi from "koffi";
import { check } from "./libc.ts";

/**
 * Says when a pipe can be read, without reading from it: Node's own streams consume what they announce, and a
 * byte that is in our memory only is lost with us. One epoll(7) for all, waited for on one thread of libuv's
 * pool while anything is watched. Edge-triggered: after a call, read until EAGAIN.
 */
export interface Readiness {
  /** `hup` is true when the last writer closed. Returns what ends the watch; call it before closing the fd. */
  watch(fd: number, onReadable: (hup: boolean) => void): () => void;
}

const lib = koffi.load("libc.so.6");
const libc = {
  epoll_create1: lib.func("int epoll_create1(int)"),
  epoll_ctl: lib.func("int epoll_ctl(int, int, int, void *)"),
  epoll_wait: lib.func("int epoll_wait(int, _Out_ void *, int, int)"),
  eventfd: lib.func("int eventfd(uint, int)"),
};

const EPOLL_CLOEXEC = 0o2000000;
const EFD_FLAGS = 0o2000000 | 0o4000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLLIN = 0x1;
const EPOLLERR = 0x8;
const EPOLLHUP = 0x10;
const EPOLLET = 0x80000000;
/** struct epoll_event is packed on x86-64 alone. */
const layout = process.arch === "x64" ? { size: 12, data: 4 } : { size: 16, data: 8 };
const maxEvents = 64;

/** The one of this process. */
export function createReadiness(): Readiness {
  const watched = new Map<number, { fd: number; onReadable: (hup: boolean) => void }>();
  let epoll: number | undefined;
  let wakeUp: number | undefined;
  let waiting = false;
  /** Given to each watch and never again, so that an event of a closed fd cannot reach its successor. */
  let nextToken = 1;

  const control = (operation: number, fd: number, events: number, token: number) => {
    const event = Buffer.alloc(layout.size);
    event.writeUInt32LE(events >>> 0, 0);
    event.writeUInt32LE(token, layout.data);
    check(libc.epoll_ctl(epoll as number, operation, fd, event), "epoll_ctl");
  };
  const wake = () => {
    if (wakeUp === undefined) return;
    const one = Buffer.alloc(8);
    one.writeUInt8(1, 0);
    writeSync(wakeUp, one);
  };
  const open = () => {
    epoll = check(libc.epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    wakeUp = check(libc.eventfd(0, EFD_FLAGS), "eventfd");
    control(EPOLL_CTL_ADD, wakeUp, EPOLLIN | EPOLLET, 0);
    // Node joins its pool's threads when it ends: ours must not sit in epoll_wait then.
    process.on("exit", wake);
  };
  const events = Buffer.alloc(layout.size * maxEvents);
  const next = () => {
    waiting = true;
    libc.epoll_wait.async(epoll, events, maxEvents, -1, (_error: unknown, count: number) => {
      waiting = false;
      for (let index = 0; index < count; index++) {
        const bits = events.readUInt32LE(index * layout.size);
        const token = events.readUInt32LE(index * layout.size + layout.data);
        watched.get(token)?.onReadable((bits & (EPOLLHUP | EPOLLERR)) !== 0);
      }
      if (watched.size > 0 && !waiting) next();
    });
  };

  return {
    watch: (fd, onReadable) => {
      if (epoll === undefined) open();
      const token = nextToken++;
      watched.set(token, { fd, onReadable });
      control(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLET, token);
      if (!waiting) next();
      return () => {
        if (!watched.delete(token)) return;
        control(EPOLL_CTL_DEL, fd, 0, 0);
        // Nothing left to wait for: let the thread go, and the process end.
        if (watched.size === 0) wake();
      };
    },
  };
}
