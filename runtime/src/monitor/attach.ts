import { PassThrough, Writable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { adoptSocket } from "../linux/descriptor.ts";
import type { Linux } from "../linux/linux.ts";

const STDERR = 3;
/** conmon reads at most 32 KiB of a packet and drops the rest. */
const PACKET = 8192;
/** conmon writes to its clients one after the other and waits for each: one that stands still stops the container. */
const STALL_MS = 10_000;

export type MonitorConnection = {
  stdin: Writable;
  stdout: PassThrough;
  stderr: PassThrough;
  close(): void;
};

/**
 * Connects to the attach socket of a conmon: packets (SOCK_SEQPACKET) whose first byte says stdout (2) or stderr (3)
 * this way, plain bytes for stdin the other way, where the end of writing is the end of the container's stdin unless
 * conmon runs with --leave-stdin-open. The connection lives on Node's event loop: idle it costs nothing.
 */
export const connectMonitor = async (
  path: string,
  linux: Pick<Linux, "connectUnix">,
  signal: AbortSignal,
): Promise<MonitorConnection> => {
  const socket = adoptSocket(await connect(path, linux, signal));
  const stdout = new PassThrough({ highWaterMark: 256 * 1024 });
  const stderr = new PassThrough({ highWaterMark: 256 * 1024 });
  let stalled: NodeJS.Timeout | undefined;

  const resume = () => {
    if (stdout.writableNeedDrain || stderr.writableNeedDrain) return;
    clearTimeout(stalled);
    stalled = undefined;
    socket.resume();
  };
  stdout.on("drain", resume);
  stderr.on("drain", resume);
  socket.on("data", (packet: Buffer) => {
    const sink = packet[0] === STDERR ? stderr : stdout;
    if (sink.destroyed || sink.writableEnded || sink.write(packet.subarray(1))) return;
    socket.pause();
    stalled ??= setTimeout(() => {
      socket.destroy(new Error(`Cannot deliver output: the client took nothing for ${STALL_MS / 1000} s`));
    }, STALL_MS);
  });

  const finish = (error?: Error) => {
    clearTimeout(stalled);
    for (const sink of [stdout, stderr]) {
      if (error) sink.destroy(error);
      else if (!sink.writableEnded) sink.end();
    }
  };
  socket.on("end", () => {
    finish();
    socket.destroy();
  });
  socket.on("error", (error: NodeJS.ErrnoException) => {
    const gone = error.code === "EPIPE" || error.code === "ECONNRESET";
    finish(gone ? undefined : error);
  });
  socket.on("close", () => {
    finish();
    stdin.destroy();
  });

  // One write is one packet, so the next one waits: queued writes would be gathered into one.
  const stdin = new Writable({
    highWaterMark: 4 * PACKET,
    write(chunk: Buffer, _encoding, done) {
      const next = (offset: number) => {
        if (offset >= chunk.length) return done();
        socket.write(chunk.subarray(offset, offset + PACKET), (error) =>
          error ? done(error) : next(offset + PACKET),
        );
      };
      next(0);
    },
    final(done) {
      socket.end(() => done());
    },
  });
  stdin.on("error", () => {});
  // A client that reads one stream only must not block the other.
  stdout.on("error", () => {});
  stderr.on("error", () => {});
  socket.resume();
  return { stdin, stdout, stderr, close: () => socket.destroy() };
};

/** conmon keeps ten callers waiting; more get EAGAIN until it has looked. */
const connect = async (path: string, linux: Pick<Linux, "connectUnix">, signal: AbortSignal) => {
  for (;;) {
    signal.throwIfAborted();
    try {
      return linux.connectUnix(path, "seqpacket");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
    }
    await sleep(5, undefined, { signal });
  }
};
