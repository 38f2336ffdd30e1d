import { randomUUID } from "node:crypto";
import { rm, statfs } from "node:fs/promises";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { BlobFile } from "./blob-file.ts";
import { RegistryUnavailable } from "./endpoint-error.ts";
import type { Descriptor } from "./manifest.ts";
import type { Repository } from "./registry.ts";
import { Semaphore } from "./semaphore.ts";
import { SingleFlight } from "./single-flight.ts";

export type BlobStageOptions = {
  /** Folder for blobs on their way; whatever is in it after a restart is rubbish. */
  folder: string;
  /** Downloads at a time, over all pulls. */
  maxDownloads: number;
  /** A download to which nothing comes for so long fails. */
  stallMs: number;
  /** How long what a broken download got is kept for the next try. */
  keepMs?: number;
  received?: ((bytes: number) => void) | undefined;
};

/** A checked blob in a file, there until disposed. */
export type StagedBlob = AsyncDisposable & { path: string };

type Entry = {
  path: string;
  users: number;
  whole: boolean;
  offset: number;
  broken: boolean;
  timer?: NodeJS.Timeout;
};

/**
 * Blobs between registry and snapshotter: each is fetched once, however many pulls ask for it at the same time, and
 * goes on where it was broken off, be it by another try of another pull.
 */
export class BlobStage implements AsyncDisposable {
  readonly #options: BlobStageOptions;
  readonly #downloads: Semaphore;
  readonly #flights = new SingleFlight<void>();
  readonly #entries = new Map<string, Entry>();

  constructor(options: BlobStageOptions) {
    this.#options = options;
    this.#downloads = new Semaphore(options.maxDownloads);
  }

  /** Fetches a blob. What nobody holds any more is taken away. */
  async fetch(descriptor: Descriptor, repository: Repository, signal: AbortSignal): Promise<StagedBlob> {
    const { digest } = descriptor;
    const key = `${digest} ${descriptor.size}`;
    const entry = this.#entries.get(key) ?? {
      path: join(this.#options.folder, randomUUID()),
      users: 0,
      whole: false,
      offset: 0,
      broken: false,
    };
    this.#entries.set(key, entry);
    clearTimeout(entry.timer);
    entry.users++;
    let open = true;
    const release = async (): Promise<void> => {
      if (!open) return;
      open = false;
      entry.users--;
      if (entry.users > 0) return;
      if (!entry.broken || entry.whole) return await this.#drop(key, entry);
      entry.timer = setTimeout(
        () => void this.#drop(key, entry).catch(() => {}),
        this.#options.keepMs ?? 600_000,
      );
      entry.timer.unref();
    };
    try {
      const work = (shared: AbortSignal) =>
        this.#downloads.run(() => this.#download(entry, descriptor, repository, shared), shared);
      if (!entry.whole) await this.#flights.run(key, work, signal);
      return { path: entry.path, [Symbol.asyncDispose]: release };
    } catch (error) {
      await release();
      throw error;
    }
  }

  /** Bytes that are here of a blob on its way. */
  received(descriptor: Descriptor): number {
    return this.#entries.get(`${descriptor.digest} ${descriptor.size}`)?.offset ?? 0;
  }

  /** Throws when blobs of so many bytes cannot be stored: better now than after an hour. */
  async assertRoom(bytes: number): Promise<void> {
    const { bavail, bsize } = await statfs(this.#options.folder);
    if (bytes <= bavail * bsize) return;
    throw new RuntimeError(
      "resource-exhausted",
      `no space left on device: ${bytes} bytes are to be fetched, "${this.#options.folder}" has ${bavail * bsize} left`,
    );
  }

  /** Takes away what is only kept for another try. */
  async forget(): Promise<void> {
    for (const [key, entry] of [...this.#entries]) if (entry.users === 0) await this.#drop(key, entry);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.forget();
  }

  async #drop(key: string, entry: Entry): Promise<void> {
    clearTimeout(entry.timer);
    if (this.#entries.get(key) === entry) this.#entries.delete(key);
    await rm(entry.path, { force: true });
  }

  async #download(
    entry: Entry,
    descriptor: Descriptor,
    repository: Repository,
    signal: AbortSignal,
  ): Promise<void> {
    if (entry.whole) return;
    const stalled = new AbortController();
    const either = AbortSignal.any([signal, stalled.signal]);
    await using file = await BlobFile.open(entry.path, descriptor, either);
    const look = this.#watch(entry, file, stalled);
    try {
      await repository.download(file, either);
      entry.whole = true;
    } catch (error) {
      entry.broken = error instanceof RegistryUnavailable && file.offset > 0;
      throw error;
    } finally {
      look[Symbol.dispose]();
    }
  }

  /** Counts what comes, and ends a download to which nothing comes. */
  #watch(entry: Entry, file: BlobFile, stalled: AbortController): Disposable {
    const { stallMs, received } = this.#options;
    let movedAt = performance.now();
    entry.offset = file.offset;
    const look = (): void => {
      if (file.offset !== entry.offset) {
        movedAt = performance.now();
        if (file.offset > entry.offset) received?.(file.offset - entry.offset);
        entry.offset = file.offset;
      } else if (performance.now() - movedAt >= stallMs) {
        const { digest, size } = file.descriptor;
        stalled.abort(
          new RegistryUnavailable(
            `nothing came of blob ${digest} for ${Math.round(stallMs / 1000)} seconds: ${file.offset} of ${size} bytes are there`,
          ),
        );
      }
    };
    const timer = setInterval(look, Math.min(1000, Math.ceil(stallMs / 4)));
    timer.unref();
    return {
      [Symbol.dispose]: () => {
        clearInterval(timer);
        look();
      },
    };
  }
}
