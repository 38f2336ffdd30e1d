import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Records } from "./records.ts";

/** What every kept thing has: its id, and the name that no other may have at the same time. */
type Kept = { id: string };

/** How long until a record that could not be written is tried again. */
const rewriteMs = 500;

/** Things by id, in memory and as records; names stay reserved for as long as the thing is there. */
export class IndexById<T extends Kept> {
  readonly #what: string;
  readonly #records: Records<T>;
  readonly #nameOf: (value: T) => string;
  readonly #byId = new Map<string, T>();
  readonly #names = new Map<string, string>();
  readonly #unreadable = new Set<string>();

  constructor(what: string, records: Records<T>, nameOf: (value: T) => string) {
    this.#what = what;
    this.#records = records;
    this.#nameOf = nameOf;
  }

  load(report: (error: RuntimeError) => void): void {
    const note = (error: RuntimeError, id: string): void => {
      this.#unreadable.add(id);
      report(error);
    };
    for (const value of this.#records.load(note)) {
      this.#byId.set(value.id, value);
      this.#names.set(this.#nameOf(value), value.id);
    }
  }

  /** Reserves the name and writes the first record. */
  add(value: T): void {
    const name = this.#nameOf(value);
    const owner = this.#names.get(name);
    if (owner !== undefined)
      throw new RuntimeError(
        "already-exists",
        `Cannot create ${this.#what} "${name}": the name is reserved for ${owner}`,
      );
    this.#records.put(value.id, value);
    this.#names.set(name, value.id);
    this.#byId.set(value.id, value);
  }

  /** Replaces what is there by the next state of it; undefined when it is gone. */
  update(id: string, change: (value: T) => T): T | undefined {
    const value = this.#byId.get(id);
    if (value === undefined) return undefined;
    const next = change(value);
    if (next === value) return value;
    this.#records.put(id, next);
    this.#byId.set(id, next);
    return next;
  }

  /**
   * Takes in what has happened, which is true whether or not it can be written down (a full disk): the record follows
   * as soon as it can. A restart before that finds out again.
   */
  learn(id: string, change: (value: T) => T): T | undefined {
    const value = this.#byId.get(id);
    if (value === undefined) return undefined;
    const next = change(value);
    if (next === value) return value;
    this.#byId.set(id, next);
    this.#write(id);
    return next;
  }

  #write(id: string): void {
    const value = this.#byId.get(id);
    if (value === undefined) return;
    try {
      this.#records.put(id, value);
    } catch {
      setTimeout(() => this.#write(id), rewriteMs).unref();
    }
  }

  delete(id: string): void {
    const value = this.#byId.get(id);
    this.#records.delete(id);
    if (value === undefined) return;
    this.#byId.delete(id);
    this.#names.delete(this.#nameOf(value));
  }

  get(id: string): T | undefined {
    return this.#byId.get(id);
  }

  /** By id or by a prefix that only one has, as people type it. */
  find(idOrPrefix: string): T | undefined {
    const exact = this.#byId.get(idOrPrefix);
    if (exact !== undefined || idOrPrefix === "") return exact;
    const found = [...this.#byId.values()].filter(({ id }) => id.startsWith(idOrPrefix));
    if (found.length > 1)
      throw new RuntimeError(
        "invalid-argument",
        `Cannot find ${this.#what} "${idOrPrefix}": ${found.length} ids begin with it`,
      );
    return found[0];
  }

  /** The same, where the thing must be there. */
  require(idOrPrefix: string): T {
    const value = this.find(idOrPrefix);
    if (value === undefined) throw new RuntimeError("not-found", `Cannot find ${this.#what} "${idOrPrefix}"`);
    return value;
  }

  /** Of all records, also those that cannot be read: another version wrote them, and may know what they say. */
  recorded(): Set<string> {
    return new Set([...this.#byId.keys(), ...this.#unreadable]);
  }

  /** Who has this name now. */
  named(name: string): T | undefined {
    return this.#byId.get(this.#names.get(name) ?? "");
  }

  list(): T[] {
    return [...this.#byId.values()];
  }
}
