import { readFile } from "node:fs/promises";
import type { Usage } from "../handler/handler.ts";
import { type Interface, parseNetDev } from "../stats/net-dev.ts";

/** Younger figures are good enough; kubelet and metrics ask for the same within a second. */
const freshMs = 1_000;
/** How long the figures of one may take while a list of all waits for them. */
const defaultPatienceMs = 5_000;

type Sample = { usage: Usage | undefined; nanoCores: bigint; at: number };

/** Keeps the last figures of each container and pod: for rates, and so that many askers cost one reading. */
export class Sampler {
  readonly #samples = new Map<string, Sample>();
  readonly #reading = new Map<string, Promise<Sample>>();
  /** Those that took too long when they were last read: nobody waits for them until they come in time. */
  readonly #late = new Set<string>();
  readonly #patienceMs: number;

  constructor(patienceMs = defaultPatienceMs) {
    this.#patienceMs = patienceMs;
  }

  /**
   * The figures of `id`, read by `read` unless there are fresh ones. A reading that fails counts as none; one that takes
   * long goes on, and what was read before it is what there is.
   */
  async of(id: string, read: () => Promise<Usage | undefined>): Promise<Sample> {
    const last = this.#samples.get(id);
    if (last !== undefined && performance.now() - last.at < freshMs) return last;
    let reading = this.#reading.get(id);
    if (reading === undefined) {
      const begun = performance.now();
      reading = this.#read(last, read)
        .then((sample) => {
          this.#samples.set(id, sample);
          if (sample.at - begun < this.#patienceMs) this.#late.delete(id);
          return sample;
        })
        .finally(() => this.#reading.delete(id));
      this.#reading.set(id, reading);
    }
    const before = last ?? { usage: undefined, nanoCores: 0n, at: 0 };
    if (this.#late.has(id)) return before;
    const { promise: late, resolve } = Promise.withResolvers<Sample>();
    const timer = setTimeout(() => {
      this.#late.add(id);
      resolve(before);
    }, this.#patienceMs);
    try {
      return await Promise.race([reading, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  forget(id: string): void {
    this.#samples.delete(id);
    this.#late.delete(id);
  }

  async #read(last: Sample | undefined, read: () => Promise<Usage | undefined>): Promise<Sample> {
    const usage = await read().catch(() => undefined);
    const before = last?.usage;
    const elapsed = usage && before ? usage.timestamp - before.timestamp : 0n;
    const nanoCores =
      usage && before && elapsed > 0n && usage.cpuNanos >= before.cpuNanos
        ? ((usage.cpuNanos - before.cpuNanos) * 1_000_000_000n) / elapsed
        : 0n;
    return { usage, nanoCores, at: performance.now() };
  }
}

/** Interfaces as the process `pid` sees them; none when it is gone. */
export const readInterfaces = async (pid: number): Promise<Interface[]> =>
  parseNetDev(await readFile(`/proc/${pid}/net/dev`, "utf8").catch(() => ""));
