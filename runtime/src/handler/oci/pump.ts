import type { Readable, Writable } from "node:stream";

/** How long output may stay away after the process ended, while something else holds its pipe open. */
const QUIET_MS = 500;
/** How long a client may take for what is left. */
const BLOCKED_MS = 30_000;

export type Pump = {
  ended: Promise<void>;
  /** When data last moved, by performance.now(). */
  movedAt(): number;
  /** True while the sink takes nothing. */
  blocked(): boolean;
};

/** Copies until the source ends, as fast as the sink takes it. A sink that is gone or absent: the rest is dropped. */
export const pump = (source: Readable, sink: Writable | undefined): Pump => {
  let moved = performance.now();
  let blocked = false;
  const resume = () => {
    blocked = false;
    moved = performance.now();
    source.resume();
  };
  source.on("data", (chunk: Buffer) => {
    moved = performance.now();
    if (sink === undefined || sink.destroyed || sink.writableEnded) return;
    if (sink.write(chunk)) return;
    blocked = true;
    source.pause();
  });
  sink?.on("drain", resume);
  sink?.on("close", resume);
  sink?.on("error", resume);
  const ended = new Promise<void>((resolve) => {
    source.once("close", resolve);
    source.once("end", resolve);
  }).finally(() => {
    sink?.off("drain", resume);
    sink?.off("close", resume);
  });
  source.resume();
  return { ended, movedAt: () => moved, blocked: () => blocked };
};

/**
 * Waits until all has ended, or until nothing came for a while although the sinks would take it: a grandchild may
 * hold the pipe for ever.
 */
export const drained = async (pumps: Pump[]): Promise<void> => {
  const start = performance.now();
  let timer: NodeJS.Timeout | undefined;
  const quiet = new Promise<void>((resolve) => {
    const look = () => {
      const now = performance.now();
      const last = Math.max(start, ...pumps.map((one) => one.movedAt()));
      const limit = pumps.some((one) => one.blocked()) ? BLOCKED_MS : QUIET_MS;
      if (now - last >= limit) resolve();
      else timer = setTimeout(look, limit - (now - last));
    };
    timer = setTimeout(look, QUIET_MS);
  });
  await Promise.race([Promise.all(pumps.map((one) => one.ended)), quiet]);
  clearTimeout(timer);
};
