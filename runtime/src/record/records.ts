import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { replaceFileSync } from "@bulkhead/lib/std/replace-file.ts";

/** How a value becomes JSON and comes back; `decode` throws on what it does not know. */
export type Codec<T> = { encode(value: T): unknown; decode(json: unknown): T };

/**
 * One JSON file per record in a directory on tmpfs. A record is replaced by rename, so that a kill -9 leaves
 * the old one or the new one. Nothing is synced: what lives here ends with the node's uptime anyway. Calls are
 * synchronous on purpose: a write takes some tens of microseconds, and nothing may come between a change in
 * memory and its record.
 */
export class Records<T> {
  readonly #dir: string;
  readonly #codec: Codec<T>;

  constructor(dir: string, codec: Codec<T>) {
    this.#dir = dir;
    this.#codec = codec;
    mkdirSync(dir, { recursive: true, mode: 0o700 });
  }

  put(id: string, value: T): void {
    replaceFileSync(this.#path(id), JSON.stringify(this.#codec.encode(value)));
  }

  delete(id: string): void {
    rmSync(this.#path(id), { force: true });
  }

  /** All records. Half-written ones are removed; those that cannot be read are reported by id and stay for a human. */
  load(report: (error: RuntimeError, id: string) => void): T[] {
    const values: T[] = [];
    for (const name of readdirSync(this.#dir)) {
      const path = join(this.#dir, name);
      if (name.endsWith(".new")) {
        rmSync(path, { force: true });
        continue;
      }
      try {
        values.push(this.#codec.decode(JSON.parse(readFileSync(path, "utf8"))));
      } catch (error) {
        report(
          new RuntimeError("internal", `Cannot read record ${path}: ${messageOf(error)}`, { cause: error }),
          basename(name, ".json"),
        );
      }
    }
    return values;
  }

  #path(id: string): string {
    return join(this.#dir, `${id}.json`);
  }
}
