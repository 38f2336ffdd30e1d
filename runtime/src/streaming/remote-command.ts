import type { Readable, Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { Channels } from "./channels.ts";
import { windowSizes } from "./resize.ts";
import type { StreamingBackend, StreamRequest } from "./streaming.ts";

/** Runs an exec request on a client's channels to its end. */
export async function runExec(
  backend: StreamingBackend,
  request: StreamRequest,
  channels: Channels,
): Promise<void> {
  // With a terminal the client's going is a hang-up. Without one the command goes on, as it does under the anchors.
  const signal = request.tty ? channels.closed : new AbortController().signal;
  try {
    const { stdin, stdout, stderr } = channels;
    const io = {
      ...(stdin && { stdin }),
      ...(stdout && { stdout }),
      ...(stderr && { stderr }),
      tty: request.tty,
    };
    const process = await backend.exec(request.containerId, request.cmd ?? [], io, signal);
    const hangUp = () => void process.kill().catch(() => {});
    if (request.tty) {
      if (signal.aborted) hangUp();
      else signal.addEventListener("abort", hangUp, { once: true });
    }
    forwardSizes(channels, process.resize);
    const exitCode = await process.exited;
    signal.removeEventListener("abort", hangUp);
    await channels.finish({ exitCode });
  } catch (error) {
    await channels.finish({ error });
  }
}

/** Connects a client to a container's own stdio until the container or the client ends. */
export async function runAttach(
  backend: StreamingBackend,
  request: StreamRequest,
  channels: Channels,
): Promise<void> {
  try {
    const session = await backend.attach(request.containerId, channels.closed);
    const close = () => session.close();
    channels.closed.addEventListener("abort", close, { once: true });
    try {
      forwardSizes(channels, session.resize);
      if (session.stdin && channels.stdin) pipeline(channels.stdin, session.stdin).catch(() => {});
      await Promise.all([
        copy(session.stdout, channels.stdout),
        session.stderr ? copy(session.stderr, channels.stderr) : undefined,
      ]);
    } finally {
      channels.closed.removeEventListener("abort", close);
      session.close();
    }
    await channels.finish({ exitCode: 0 });
  } catch (error) {
    await channels.finish({ error });
  }
}

/** Copies to a sink that may be absent or break off; the source is read to its end all the same. */
async function copy(from: Readable, to: Writable | undefined): Promise<void> {
  if (to) await pipeline(from, to, { end: false }).catch(() => {});
  else for await (const _ of from);
}

function forwardSizes(channels: Channels, resize: (width: number, height: number) => Promise<void>): void {
  const { resize: sizes } = channels;
  if (!sizes) return;
  void (async () => {
    for await (const { width, height } of windowSizes(sizes)) await resize(width, height).catch(() => {});
  })().catch(() => {});
}
