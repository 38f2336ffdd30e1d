import type { Readable, Writable } from "node:stream";
import type { Outcome } from "./status.ts";

/** The streams of one exec or attach, whatever carries them. */
export type Channels = {
  stdin?: Readable;
  stdout?: Writable;
  stderr?: Writable;
  /** Window sizes as the client sends them: {"Width":80,"Height":24}, one JSON value after the other. */
  resize?: Readable;
  /** Writes the outcome on the error stream, lets everything drain and closes the connection. */
  finish(outcome: Outcome): Promise<void>;
  /** Aborts when the client is gone. */
  closed: AbortSignal;
};

/** Which of them a request wants. */
export type Wanted = { stdin: boolean; stdout: boolean; stderr: boolean; tty: boolean };

/** A client that asked for an upgrade must open its streams within this time. */
export const streamCreationTimeout = 30_000;
