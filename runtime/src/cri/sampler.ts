import { readFile } from "node:fs/promises";
import type { Usage } from "../handler/handler.ts";
import { type Interface, parseNetDev } from "../stats/net-dev.ts";

/** Younger figures are good enough; kubelet and metrics ask for the same within a second. */
const freshMs = 1_000;

type Sample = { usage: Usage | undefined; nanoCores: bigint; at: number };

/** Keeps the last figures of each container and pod: for rates, and so that many askers cost one reading. */
export class Sampler {
  readonly #samples = new Map<string, Sample>();
  readonly #reading = new Map<string, Promise<Sample>>();

  /** The figures of `id`, read by `read` unless there are fresh ones. A reading that fails counts as none. */
  async of(id: string, read: () => Promise<Usage | undefined>): Promise<Sample> {
    const last = this.#samples.get(id);
    if (last !== undefined && performance.now() - last.at < freshMs) return last;
    let reading = this.#reading.get(id);
    if (reading === undefined) {
      reading = this.#read(last, read)
        .then((sample) => {
          this.#samples.set(id, sample);
          return sample;
        })
        .finally(() => this.#reading.delete(id));
      this.#reading.set(id, reading);
    }
    return await reading;
  }

  forget(id: string): void {
    this.#samples.delete(id);
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
