import { Duplex } from "node:stream";
import type { UnreadOfClient } from "../unread.ts";
import {
  dataHeader,
  decodeFrame,
  type Frame,
  frameCutter,
  goAway,
  ping,
  rst,
  rstStream,
  synReply,
} from "./frame.ts";
import { HeaderDeflater, HeaderInflater, type Headers } from "./headers.ts";

/** More than kubectl ever opens at once; a peer that goes on is refused stream by stream. */
const maxStreams = 1024;
/** What a slow reader of one stream may hold back before the whole connection waits for it. */
const maxBuffered = 1024 * 1024;
const maxFrame = 1024 * 1024;
/** Payload of one outgoing data frame. */
const maxPayload = 32 * 1024;

/** A stream that the peer opened. `end()` half-closes our side; destroying it resets the stream. */
export class SpdyStream extends Duplex {
  readonly id: number;
  readonly headers: Headers;
  readonly #connection: SpdyConnection;
  readonly #unread: UnreadOfClient;
  #held = 0;
  #wake: (() => void) | undefined;

  constructor(connection: SpdyConnection, unread: UnreadOfClient, id: number, headers: Headers) {
    super({ allowHalfOpen: true, emitClose: true });
    this.#connection = connection;
    this.#unread = unread;
    this.id = id;
    this.headers = headers;
    // A reset by the peer must not bring the daemon down when nobody listens.
    this.on("error", () => {});
  }

  /** Every way of reading comes by here. */
  override read(size?: number): unknown {
    const chunk: unknown = super.read(size);
    this.#account(this.readableLength);
    return chunk;
  }

  #account(held: number): void {
    const change = held - this.#held;
    this.#held = held;
    this.#unread.change(change);
  }

  override _read(): void {
    this.#wake?.();
    this.#wake = undefined;
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#connection.sendData(this.id, chunk, false).then(() => done(), done);
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#connection.sendData(this.id, Buffer.alloc(0), true).then(() => done(), done);
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#wake?.();
    this.#account(0);
    this.#connection.forget(this, !this.writableFinished || !this.readableEnded);
    done(error);
  }

  /** Takes data from the connection; resolves when there is room for more. */
  async deliver(data: Buffer): Promise<void> {
    if (this.destroyed) return;
    const isShort = this.push(data);
    this.#account(this.destroyed ? 0 : this.readableLength);
    if (!isShort && this.readableLength > maxBuffered) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    await this.#unread.room();
  }
}

/**
 * The server's side of a SPDY/3.1 connection over any duplex (a socket, or WebSocket messages).
 * `unread` is this client's own. `onStream` is called for each stream that the peer opens, after our SYN_REPLY.
 */
export class SpdyConnection {
  readonly #transport: Duplex;
  readonly #onStream: (stream: SpdyStream) => void;
  readonly #inflater = new HeaderInflater();
  readonly #deflater = new HeaderDeflater();
  readonly #streams = new Map<number, SpdyStream>();
  readonly #closed = new AbortController();
  readonly #unread: UnreadOfClient;
  #last = 0;

  constructor(transport: Duplex, unread: UnreadOfClient, onStream: (stream: SpdyStream) => void) {
    this.#transport = transport;
    this.#unread = unread;
    this.#onStream = onStream;
    transport.on("error", () => this.close());
    transport.once("close", () => this.close());
    void this.#run();
  }

  /** Aborts when the connection is gone. */
  get closed(): AbortSignal {
    return this.#closed.signal;
  }

  /** Bytes that wait for their readers. */
  get unread(): number {
    return this.#unread.held;
  }

  async #run(): Promise<void> {
    const frames = frameCutter(maxFrame);
    try {
      for await (const chunk of this.#transport as AsyncIterable<Buffer>)
        for (const frame of frames(chunk)) await this.#handle(decodeFrame(frame));
    } catch {
      // A peer that breaks the protocol or hangs up gets no other answer than the end.
    }
    this.close();
  }

  async #handle(frame: Frame): Promise<void> {
    switch (frame.type) {
      case "synStream": {
        // Headers are inflated even for a refused stream: the compression state is shared.
        const headers = await this.#inflater.decode(frame.headers);
        if (frame.stream <= this.#last || frame.stream % 2 === 0)
          throw new Error("SPDY stream id out of order");
        this.#last = frame.stream;
        if (this.#streams.size >= maxStreams) return this.#send(rstStream(frame.stream, rst.refusedStream));
        const stream = new SpdyStream(this, this.#unread, frame.stream, headers);
        this.#streams.set(frame.stream, stream);
        await this.#send(synReply(frame.stream, this.#deflater.encode(new Map())));
        if (frame.fin) stream.push(null);
        this.#onStream(stream);
        return;
      }
      case "data": {
        const stream = this.#streams.get(frame.stream);
        if (!stream) return this.#send(rstStream(frame.stream, rst.invalidStream));
        if (stream.readableEnded) return;
        if (frame.data.length > 0) await stream.deliver(frame.data);
        if (frame.fin) stream.push(null);
        return;
      }
      case "rstStream":
        this.#streams.get(frame.stream)?.destroy(new Error("stream reset by the client"));
        return;
      case "ping":
        return this.#send(ping(frame.id));
      case "headers":
      case "synReply":
        await this.#inflater.decode(frame.headers);
        return;
      case "goAway":
      case "ignored":
        return;
    }
  }

  async sendData(stream: number, data: Buffer, fin: boolean): Promise<void> {
    if (data.length === 0) {
      if (fin) await this.#send(dataHeader(stream, 0, true));
      return;
    }
    for (let at = 0; at < data.length; at += maxPayload) {
      const part = data.subarray(at, at + maxPayload);
      this.#transport.cork();
      this.#transport.write(dataHeader(stream, part.length, false));
      const sent = this.#send(part);
      this.#transport.uncork();
      await sent;
    }
  }

  async #send(bytes: Buffer): Promise<void> {
    if (this.closed.aborted) throw new Error("connection closed by the client");
    await new Promise<void>((resolve, reject) => {
      this.#transport.write(bytes, (error) => (error ? reject(error) : resolve()));
    });
  }

  /** A stream is done with; `reset` tells the peer when it ended before both sides were through. */
  forget(stream: SpdyStream, reset: boolean): void {
    if (this.#streams.delete(stream.id) && reset && !this.closed.aborted) {
      this.#send(rstStream(stream.id, rst.cancel)).catch(() => {});
    }
  }

  /** Sends what was written, then hangs up. */
  async finish(): Promise<void> {
    if (this.closed.aborted) return;
    await this.#send(goAway(this.#last)).catch(() => {});
    this.#transport.end();
  }

  close(): void {
    if (this.closed.aborted) return;
    this.#closed.abort();
    this.#unread.close();
    this.#inflater.close();
    this.#transport.destroy();
    for (const stream of [...this.#streams.values()]) stream.destroy();
    this.#streams.clear();
  }
}
