import { existsSync } from "node:fs";
import { join } from "node:path";
import type { ContainerRef } from "../handler.ts";
import { files } from "./files.ts";
import type { ContainerOutput } from "./output.ts";
import { holdOpen, stdioPaths } from "./stdio.ts";

/** An output that is read, and what keeps its pipes from reading as ended. */
export type EarlyOutput = { output: ContainerOutput; held: Disposable };

/**
 * Outputs that are read by what their containers' records say alone, before anybody knows whether the shim answers, and
 * for as long as it does not: who writes must not wait for that.
 */
export class EarlyOutputs {
  readonly #read = new Map<string, EarlyOutput>();
  readonly #open: (container: ContainerRef) => ContainerOutput;

  constructor(open: (container: ContainerRef) => ContainerOutput) {
    this.#open = open;
  }

  /** Begins to read an output, unless it is read already. */
  read(container: ContainerRef): void {
    const io = join(container.stateDir, files.io);
    if (this.#read.has(container.id) || !existsSync(io)) return;
    // Without it the reader would take a pipe that its shim has not opened yet for one at its end.
    const held = holdOpen({ ...stdioPaths(io, container), stdin: "" });
    try {
      const output = this.#open(container);
      this.#read.set(container.id, { output, held });
      output.start();
    } catch (error) {
      held[Symbol.dispose]();
      throw error;
    }
  }

  get(id: string): ContainerOutput | undefined {
    return this.#read.get(id)?.output;
  }

  /** Hands an output over, which is read on. */
  take(id: string): EarlyOutput | undefined {
    const early = this.#read.get(id);
    this.#read.delete(id);
    return early;
  }

  close(id: string): void {
    const early = this.take(id);
    early?.held[Symbol.dispose]();
    early?.output.close();
  }

  [Symbol.dispose](): void {
    for (const id of this.#read.keys()) this.close(id);
  }
}
