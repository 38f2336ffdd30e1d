import { createHash } from "node:crypto";
import {
  chmod,
  chown,
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  rename,
  rm,
  rmdir,
  symlink,
  unlink,
  utimes,
  writeFile,
} from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { z } from "zod";
import { EngineHandler, EngineRecord } from "../engine/engine.ts";
import type { Host } from "./host.ts";

/**
 * What Bulkhead wrote on the node and what stood there before. Each entry is in the record, synced to disk, before
 * the file is touched: whatever happens in between, leaving puts the former bytes back.
 */

const Former = z.object({
  body: z.string().describe("base64"),
  mode: z.int(),
  uid: z.int(),
  gid: z.int(),
  mtimeMs: z.number(),
});

const Entry = z.discriminatedUnion("kind", [
  z.object({
    kind: z.literal("file"),
    path: z.string(),
    /** Of the bytes that we wrote last. */
    sha256: z.string(),
    /** null: nothing stood there. */
    former: Former.nullable(),
  }),
  z.object({ kind: z.literal("link"), path: z.string(), target: z.string(), former: z.string().nullable() }),
  /** A directory that we made and that goes when it is empty. */
  z.object({ kind: z.literal("directory"), path: z.string() }),
  /** A directory that is ours with all that is in it; one that stood there before us is emptied, not removed. */
  z.object({ kind: z.literal("tree"), path: z.string(), existed: z.boolean() }),
]);
export type Entry = z.infer<typeof Entry>;

/** One profile as it last served well: what to go back to. */
export const Good = z.object({
  revision: z.string(),
  files: z.record(z.string(), z.string()),
  /** The boot in which a canary of it passed last. */
  boot: z.string().optional(),
  /** What the node's own engine was told of it, when that is what serves it. */
  handler: EngineHandler.optional(),
});

export type Good = z.infer<typeof Good>;

/** An artifact in /opt/bulkhead/artifacts. */
const ArtifactRecord = z.object({
  image: z.string(),
  /** SHA-256 of its manifest.json; null: it is on its way, in or out, and what is there counts for nothing. */
  list: z.string().nullable(),
  /** Signature policies that it fulfilled, by their hashes. */
  policies: z.array(z.string()),
  /** The last profile that wanted it said so: files that were changed are put right. */
  repair: z.boolean(),
});
export type ArtifactRecord = z.infer<typeof ArtifactRecord>;

const Kubelet = z.object({
  /** The kubelet's systemd unit. */
  unit: z.string(),
  /** The endpoint that it had before, and so the engine that Bulkhead fronts. */
  former: z.string(),
  /** The files that were changed to point it here. */
  files: z.array(z.string()),
});

const RecordFile = z.object({
  version: z.literal(1),
  entries: z.array(Entry).default([]),
  kubelet: Kubelet.optional(),
  engine: EngineRecord.optional(),
  profiles: z.record(z.string(), Good).default({}),
  /** By the hexadecimal digits of the digest, which name its directory. */
  artifacts: z.record(z.string(), ArtifactRecord).optional(),
});
export type RecordFile = z.infer<typeof RecordFile>;

export const sha256 = (bytes: string | Uint8Array): string =>
  createHash("sha256").update(bytes).digest("hex");

/** Where a file is written before it is renamed: a name that programs which read all files of a directory pass over. */
const temporaryOf = (path: string): string => join(dirname(path), `.${basename(path)}.bulkhead-new`);

/** Writes a file whole or not at all: temporary file, fsync, rename. */
export async function writeAtomically(
  path: string,
  body: string | Uint8Array,
  attributes: { mode: number; uid?: number; gid?: number },
): Promise<void> {
  const temporary = temporaryOf(path);
  await rm(temporary, { force: true });
  const file = await open(temporary, "wx", attributes.mode);
  try {
    await file.chmod(attributes.mode);
    if (attributes.uid !== undefined && attributes.gid !== undefined)
      await file.chown(attributes.uid, attributes.gid);
    await file.writeFile(body);
    await file.sync();
  } finally {
    await file.close();
  }
  try {
    await rename(temporary, path);
  } catch (error) {
    // A file that is a mount point of its own cannot be replaced, only rewritten.
    await rm(temporary, { force: true });
    if ((error as NodeJS.ErrnoException).code !== "EBUSY") throw error;
    await writeFile(path, body);
  }
}

/** The record of one node, at `path` of the host. */
export class Ownership {
  readonly #host: Host;
  readonly #path: string;
  #record: RecordFile = { version: 1, entries: [], profiles: {} };
  /** One change of the record at a time. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(host: Host, path: string) {
    this.#host = host;
    this.#path = path;
  }

  get record(): Readonly<RecordFile> {
    return this.#record;
  }

  async load(): Promise<void> {
    let text: string;
    try {
      text = await readFile(this.#host.at(this.#path), "utf8");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
      throw error;
    }
    try {
      this.#record = RecordFile.parse(JSON.parse(text));
    } catch (error) {
      throw new RuntimeError(
        "failed-precondition",
        `Cannot read "${this.#path}", the record of what Bulkhead wrote on this node: ${messageOf(error)}`,
        { cause: error },
      );
    }
  }

  /**
   * Changes the record, on disk before it resolves. Artifacts are fetched and profiles proven side by side: `change` gets
   * the record as those before it left it.
   */
  update(change: (record: Readonly<RecordFile>) => Partial<Omit<RecordFile, "version">>): Promise<void> {
    const done = this.#turn.then(() => this.#write({ ...this.#record, ...change(this.#record) }));
    this.#turn = done.catch(() => undefined);
    return done;
  }

  async #write(next: RecordFile): Promise<void> {
    // The record's own directory is in the record too, so that leaving removes it.
    const missing = await this.#missingDirectories(dirname(this.#path));
    const entries = [...missing.filter((path) => !next.entries.some((entry) => entry.path === path))].map(
      (path): Entry => ({ kind: "directory", path }),
    );
    this.#record = { ...next, entries: [...entries, ...next.entries] };
    for (const path of missing) await mkdir(this.#host.at(path));
    await writeAtomically(this.#host.at(this.#path), `${JSON.stringify(this.#record, undefined, 1)}\n`, {
      mode: 0o600,
    });
  }

  /**
   * Writes a file that is ours, or ours for the time being. `base`: what is to be put back one day, where that is not what
   * is found: when its owner edited the file since, or copied one that we had edited.
   */
  async write(
    path: string,
    body: string,
    { base, mode = 0o644 }: { base?: string | undefined; mode?: number } = {},
  ): Promise<void> {
    await this.#claimDirectories(dirname(path));
    const at = this.#host.at(path);
    const known = this.#record.entries.find((entry) => entry.kind === "file" && entry.path === path);
    const stat = await lstat(at).catch(() => undefined);
    const kept = known?.kind === "file" ? known : undefined;
    const edited =
      base !== undefined &&
      stat !== undefined &&
      (kept === undefined || sha256(await readFile(at)) !== kept.sha256);
    const former =
      kept !== undefined && !edited
        ? kept.former
        : stat === undefined
          ? null
          : {
              body: (edited ? Buffer.from(base) : await readFile(at)).toString("base64"),
              mode: stat.mode & 0o7777,
              uid: stat.uid,
              gid: stat.gid,
              mtimeMs: stat.mtimeMs,
            };
    await this.#put({ kind: "file", path, sha256: sha256(body), former });
    await writeAtomically(at, body, former ?? { mode });
  }

  async symlink(path: string, target: string): Promise<void> {
    await this.#claimDirectories(dirname(path));
    const at = this.#host.at(path);
    const known = this.#record.entries.find((entry) => entry.kind === "link" && entry.path === path);
    const former = known?.kind === "link" ? known.former : await readlink(at).catch(() => null);
    await this.#put({ kind: "link", path, target, former });
    const temporary = temporaryOf(at);
    await rm(temporary, { force: true });
    await symlink(target, temporary);
    await rename(temporary, at);
  }

  /** Makes a directory that is ours with all that it will hold. */
  async tree(path: string): Promise<void> {
    await this.#claimDirectories(dirname(path));
    const known = this.#record.entries.find((entry) => entry.path === path);
    const existed =
      known === undefined
        ? (await lstat(this.#host.at(path)).catch(() => undefined)) !== undefined
        : known.kind === "tree" && known.existed;
    await this.#put({ kind: "tree", path, existed });
    await mkdir(this.#host.at(path), { recursive: true });
  }

  /**
   * Puts back what stood at `path` before. `edited` is asked when somebody else changed the file since we wrote it:
   * it gets the bytes of today and returns what they are to be.
   */
  async restore(path: string, edited?: (today: string) => string): Promise<void> {
    const entry = this.#record.entries.find((candidate) => candidate.path === path);
    if (entry === undefined) return;
    const at = this.#host.at(path);
    switch (entry.kind) {
      case "file": {
        const today = await readFile(at).catch(() => undefined);
        const { former } = entry;
        if (today !== undefined && edited !== undefined && sha256(today) !== entry.sha256) {
          const stat = await lstat(at);
          await writeAtomically(at, edited(today.toString()), {
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
          });
        } else if (former === null) {
          await rm(at, { force: true });
        } else {
          await writeAtomically(at, Buffer.from(former.body, "base64"), former);
          await chmod(at, former.mode);
          await chown(at, former.uid, former.gid);
          await utimes(at, former.mtimeMs / 1000, former.mtimeMs / 1000);
        }
        break;
      }
      case "link":
        await rm(at, { force: true });
        if (entry.former !== null) await symlink(entry.former, at);
        break;
      case "directory":
        await rmdir(at).catch((error: NodeJS.ErrnoException) => {
          // Somebody else's file is in it now: then it stays.
          if (error.code !== "ENOENT" && error.code !== "ENOTEMPTY") throw error;
        });
        break;
      case "tree":
        for (const name of entry.existed ? await readdir(at).catch(() => []) : []) {
          await rm(join(at, name), { recursive: true, force: true });
        }
        if (!entry.existed) await rm(at, { recursive: true, force: true });
        break;
    }
    await this.update(({ entries }) => ({ entries: entries.filter((candidate) => candidate.path !== path) }));
  }

  /**
   * Puts everything back, last first, and removes the record with its directory. With `keep`: all but those paths, what
   * is in them and what they are in; the record stays.
   */
  async restoreAll(keep: readonly string[] = []): Promise<void> {
    if (keep.length > 0) {
      const stays = ({ path }: Entry): boolean =>
        keep.some((kept) => `${kept}/`.startsWith(`${path}/`) || path.startsWith(`${kept}/`));
      for (const entry of [...this.#record.entries].reverse())
        if (!stays(entry)) await this.restore(entry.path);
      return;
    }
    const own = dirname(this.#path);
    const later = (entry: Entry): boolean =>
      entry.kind === "directory" && `${own}/`.startsWith(`${entry.path}/`);
    for (const entry of [...this.#record.entries].reverse()) {
      if (!later(entry)) await this.restore(entry.path);
    }
    const last = this.#record.entries.filter(later).map((entry) => entry.path);
    await unlink(this.#host.at(this.#path)).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOENT") throw error;
    });
    for (const path of last.reverse()) {
      const left = await readdir(this.#host.at(path)).catch(() => undefined);
      if (left?.length === 0) await rmdir(this.#host.at(path));
    }
    this.#record = { version: 1, entries: [], profiles: {} };
  }

  async #put(entry: Entry): Promise<void> {
    const placeIn = (entries: readonly Entry[]): number =>
      entries.findIndex(({ path }) => path === entry.path);
    const known = this.#record.entries[placeIn(this.#record.entries)];
    if (JSON.stringify(known) === JSON.stringify(entry)) return;
    await this.update(({ entries }) => {
      const at = placeIn(entries);
      return { entries: at >= 0 ? entries.with(at, entry) : [...entries, entry] };
    });
  }

  async #missingDirectories(path: string): Promise<string[]> {
    if (path === "/" || (await lstat(this.#host.at(path)).catch(() => undefined)) !== undefined) return [];
    return [...(await this.#missingDirectories(dirname(path))), path];
  }

  async #claimDirectories(path: string): Promise<void> {
    const inTree = this.#record.entries.some(
      (entry) => entry.kind === "tree" && `${path}/`.startsWith(`${entry.path}/`),
    );
    for (const missing of await this.#missingDirectories(path)) {
      if (!inTree) await this.#put({ kind: "directory", path: missing });
      await mkdir(this.#host.at(missing)).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== "EEXIST") throw error;
      });
    }
  }
}
