import { closeSync, constants, openSync, readSync, rmSync } from "node:fs";
import { join } from "node:path";
import { PassThrough, type Readable } from "node:stream";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Linux } from "../../linux/linux.ts";
import type { Readiness } from "../../linux/readiness.ts";
import type { LogStream } from "../../logs/cri-log.ts";
import { Carrier } from "./carrier.ts";
import type { LogFile } from "./log-file.ts";
import { openReader } from "./stdio.ts";

/** Longest piece of a line that is left in the pipe to wait for its end: a line of the CRI log holds 16 KiB. */
const longestLine = 16 << 10;
/** A prompt without a newline is logged after this, as a partial line. */
const partialAfterMs = 2_000;
/** Room for one look; a pipe of default size has no more. */
const room = 64 << 10;
/** Looks at what is left when a container has ended: the largest pipe that there is. */
const lastLooks = 16;
/** How long all outputs together may take before other work gets its turn, in milliseconds. */
const turnMs = 5;
/** What an attached client may owe us, and for how long, before it is cut off. */
const clientBuffer = 1 << 20;
const clientPatienceMs = 10_000;

const seen = Buffer.allocUnsafe(room);
const gone = Buffer.allocUnsafe(room);

/** Between tee(2) and the read of the copy: a pipe of ours that is empty whenever no code runs. */
export type CopyPipe = { fd: number; [Symbol.dispose](): void };

export function openCopyPipe(directory: string, linux: Pick<Linux, "mkfifo">): CopyPipe {
  const path = join(directory, `tee-${process.pid}`);
  rmSync(path, { force: true });
  linux.mkfifo(path, 0o600);
  const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  rmSync(path);
  return { fd, [Symbol.dispose]: () => closeSync(fd) };
}

type OutputDeps = {
  linux: Pick<Linux, "tee" | "splice">;
  readiness: Readiness;
  copyPipe: CopyPipe;
  /** Called when the log could not take what was written: it is lost. */
  logFailed: (error: unknown) => void;
};

const isCode = (error: unknown, code: string) => (error as NodeJS.ErrnoException).code === code;

/** Outputs that have more to say, first come, first served: however many write without end, other work comes in between. */
const waiting = new Set<OutputPump>();
let isScheduled = false;

const wait = (pump: OutputPump): void => {
  waiting.add(pump);
  if (isScheduled) return;
  isScheduled = true;
  setImmediate(takeTurn);
};

const takeTurn = (): void => {
  const until = performance.now() + turnMs;
  for (const pump of waiting) {
    waiting.delete(pump);
    pump.run();
    if (performance.now() > until) break;
  }
  isScheduled = waiting.size > 0;
  if (isScheduled) setImmediate(takeTurn);
};

/**
 * Carries one output of a container from its FIFO into the log and to attached clients.
 *
 * tee(2) copies without consuming; the whole lines of the copy are moved out of the FIFO by a {@link Carrier} and written.
 * A kill -9 in between neither loses lines nor repeats them. The unfinished line stays in the FIFO.
 */
class OutputPump {
  readonly ended: Promise<void>;
  readonly #fd: number;
  readonly #stream: LogStream;
  readonly #log: LogFile | undefined;
  readonly #carrier: Carrier;
  readonly #deps: OutputDeps;
  readonly #unwatch: () => void;
  readonly #end = Promise.withResolvers<void>();
  readonly #clients: Set<Client>;
  /** Bytes at the FIFO's head that clients have got already. */
  #shown = 0;
  #hup = false;
  #closed = false;
  #partial: NodeJS.Timeout | undefined;
  readonly #again = (): void => this.run();

  constructor(
    path: string,
    stream: LogStream,
    log: LogFile | undefined,
    clients: Set<Client>,
    deps: OutputDeps,
  ) {
    this.#fd = openReader(path);
    this.#stream = stream;
    this.#log = log;
    this.#clients = clients;
    this.#deps = deps;
    this.#carrier = new Carrier(`${path}.carried`, deps.linux);
    this.#finishEarlier();
    this.ended = this.#end.promise;
    this.#unwatch = deps.readiness.watch(this.#fd, (hup) => {
      this.#hup ||= hup;
      this.run();
    });
  }

  /** What a daemon that was killed had taken out of the FIFO comes first. */
  #finishEarlier(): void {
    try {
      const left = this.#carrier.left();
      if (left) this.#log?.complete(this.#stream, left.bytes, left.place);
    } catch (error) {
      this.#deps.logFailed(error);
    }
    this.#carrier.drop();
  }

  /** Takes a piece of what is there, the rest when it is this output's turn again. */
  run(flush = false): void {
    if (this.#closed || waiting.has(this) || this.#paused()) return;
    const state = this.#look(flush);
    if (state === "ended") this.close();
    if (state === "more") wait(this);
  }

  /** Takes what is there now, unfinished lines too. */
  finish(): void {
    for (let look = 0; look < lastLooks && !this.#closed; look++) if (this.#look(true) !== "more") return;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    waiting.delete(this);
    clearTimeout(this.#partial);
    this.#unwatch();
    closeSync(this.#fd);
    this.#carrier.close();
    this.#end.resolve();
  }

  #paused(): boolean {
    for (const client of this.#clients) if (client.full(this.#again)) return true;
    return false;
  }

  #look(flush: boolean): "more" | "empty" | "ended" {
    let count: number;
    try {
      count = this.#deps.linux.tee(this.#fd, this.#deps.copyPipe.fd, room);
    } catch (error) {
      if (isCode(error, "EAGAIN")) return "empty";
      throw error;
    }
    // Nothing there and no writer.
    if (count === 0) return "ended";
    for (let read = 0; read < count; )
      read += readSync(this.#deps.copyPipe.fd, seen, read, count - read, null);
    if (count > this.#shown) {
      const fresh = seen.subarray(this.#shown, count);
      for (const client of this.#clients) client.push(this.#stream, fresh);
      this.#shown = count;
    }
    const lines = seen.lastIndexOf(0x0a, count - 1) + 1;
    const whole = flush || this.#hup || count - lines >= longestLine ? count : lines;
    clearTimeout(this.#partial);
    if (whole < count) this.#partial = setTimeout(() => this.run(true), partialAfterMs).unref();
    if (whole === 0) return "empty";
    let taken = 0;
    try {
      this.#log?.write(this.#stream, seen.subarray(0, whole), (place) => {
        taken = this.#carrier.take(this.#fd, whole, place);
      });
    } catch (error) {
      // Such as a full disk: the container must not stand still for its log.
      this.#deps.logFailed(error);
    }
    while (taken < whole) taken += readSync(this.#fd, gone, 0, whole - taken, null);
    this.#carrier.drop();
    this.#shown -= whole;
    return "more";
  }
}

/** One attached client. */
class Client {
  readonly stdout = new PassThrough({ highWaterMark: clientBuffer });
  readonly stderr: PassThrough | undefined;
  #fullSince: number | undefined;
  /** Who looks again when it has caught up, each once however often it is told to wait. */
  readonly #waiting = new Set<() => void>();

  constructor(tty: boolean) {
    this.stderr = tty ? undefined : new PassThrough({ highWaterMark: clientBuffer });
  }

  push(stream: LogStream, chunk: Uint8Array): void {
    const to = stream === "stdout" ? this.stdout : this.stderr;
    if (to && !to.destroyed && !to.writableEnded) to.write(Buffer.from(chunk));
  }

  /** True while the client must catch up; `resume` is called when it is worth another look. */
  full(resume: () => void): boolean {
    const behind = [this.stdout, this.stderr].find(
      (stream) => stream && !stream.destroyed && stream.writableNeedDrain,
    );
    if (!behind) {
      this.#fullSince = undefined;
      return false;
    }
    this.#fullSince ??= performance.now();
    if (performance.now() - this.#fullSince > clientPatienceMs) {
      this.end(new RuntimeError("resource-exhausted", "The attached client does not read what it asked for"));
      return false;
    }
    if (this.#waiting.has(resume)) return true;
    this.#waiting.add(resume);
    const again = (): void => {
      clearTimeout(timer);
      behind.off("drain", again);
      this.#waiting.delete(resume);
      resume();
    };
    const timer = setTimeout(again, 1_000);
    behind.once("drain", again);
    return true;
  }

  end(error?: Error): void {
    for (const stream of [this.stdout, this.stderr]) {
      if (error) stream?.destroy(error);
      else stream?.end();
    }
  }
}

/** All output of one container. */
export class ContainerOutput {
  readonly #pumps: OutputPump[] = [];
  readonly #clients = new Set<Client>();
  readonly #log: LogFile | undefined;
  readonly #tty: boolean;

  constructor(
    stdio: { stdout: string; stderr: string },
    options: { tty: boolean; log: LogFile | undefined },
    deps: OutputDeps,
  ) {
    this.#log = options.log;
    this.#tty = options.tty;
    try {
      for (const stream of ["stdout", "stderr"] as const)
        if (stdio[stream] !== "")
          this.#pumps.push(new OutputPump(stdio[stream], stream, options.log, this.#clients, deps));
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Takes what stood in the FIFOs before anybody watched. */
  start(): void {
    for (const pump of this.#pumps) pump.run();
  }

  /** Settles when all that was written is in the log; at the latest when `signal` says so. */
  async drained(signal: AbortSignal): Promise<void> {
    const all = Promise.all(this.#pumps.map((pump) => pump.ended));
    if (signal.aborted) return;
    const stop = Promise.withResolvers<void>();
    const abort = () => stop.resolve();
    signal.addEventListener("abort", abort, { once: true });
    await Promise.race([all, stop.promise]);
    signal.removeEventListener("abort", abort);
    // A process that outlived the container may hold the pipe and leave half a line in it.
    for (const pump of this.#pumps) pump.finish();
  }

  attach(): { stdout: Readable; stderr?: Readable; detach: () => void } {
    const client = new Client(this.#tty);
    this.#clients.add(client);
    const detach = () => {
      this.#clients.delete(client);
      client.end();
    };
    return { stdout: client.stdout, ...(client.stderr ? { stderr: client.stderr } : {}), detach };
  }

  /** Ends what clients see: the container is gone. */
  endClients(): void {
    for (const client of this.#clients) client.end();
    this.#clients.clear();
  }

  reopenLog(): void {
    this.#log?.reopen();
  }

  close(): void {
    for (const pump of this.#pumps) pump.close();
    this.endClients();
    this.#log?.close();
  }
}
