import { createHash } from "node:crypto";
import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { type DescMessage, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { hasCode } from "@bulkhead/lib/std/errors.ts";
import { replaceFile } from "@bulkhead/lib/std/replace-file.ts";

/** kubelet asks with a handful of filters; crictl's one-off filters push each other out. */
const maxAnswers = 32;
/** A list that takes the engine longer than this is answered from what we know. */
const patience = 5_000;

/**
 * What the engine last answered to each list. While it is away, its pods are still there (they run on without it),
 * and a kubelet that were told otherwise would start them anew. Kept on tmpfs too, for our own restart.
 */
export class LastKnown {
  readonly #dir: string;
  readonly #answers = new Map<string, Buffer>();
  readonly #onAway: (method: string, error: unknown) => void;

  constructor(dir: string, onAway: (method: string, error: unknown) => void) {
    this.#dir = dir;
    this.#onAway = onAway;
  }

  /** The engine's answer to a list request, or the last one it gave; an empty one when it never gave any. */
  async list<I extends DescMessage, O extends DescMessage>(
    name: string,
    schemas: { input: I; output: O },
    request: MessageShape<I>,
    ask: (request: MessageShape<I>, signal: AbortSignal) => Promise<MessageShape<O>>,
    signal: AbortSignal,
  ): Promise<MessageShape<O>> {
    const key = `${name}-${createHash("sha256").update(toBinary(schemas.input, request)).digest("hex").slice(0, 16)}`;
    try {
      const answer = await ask(request, AbortSignal.any([signal, AbortSignal.timeout(patience)]));
      this.#remember(key, Buffer.from(toBinary(schemas.output, answer)));
      return answer;
    } catch (error) {
      if (signal.aborted || !(hasCode(error, "unavailable") || hasCode(error, "cancelled"))) throw error;
      this.#onAway(name, error);
      return fromBinary(schemas.output, (await this.#recall(key)) ?? new Uint8Array());
    }
  }

  #remember(key: string, answer: Buffer): void {
    const known = this.#answers.get(key);
    this.#answers.delete(key);
    this.#answers.set(key, answer);
    const [oldest] = this.#answers.keys();
    if (this.#answers.size > maxAnswers && oldest) this.#answers.delete(oldest);
    if (!known?.equals(answer)) this.#write(key, answer).catch(() => {});
  }

  async #write(key: string, answer: Buffer): Promise<void> {
    await mkdir(this.#dir, { recursive: true, mode: 0o700 });
    await replaceFile(join(this.#dir, key), answer);
  }

  async #recall(key: string): Promise<Buffer | undefined> {
    return this.#answers.get(key) ?? (await readFile(join(this.#dir, key)).catch(() => undefined));
  }
}
