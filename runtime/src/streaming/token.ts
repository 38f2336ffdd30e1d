import { randomBytes } from "node:crypto";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

const lifetime = 60_000;
/** Requests that wait for their client. A kubelet connects at once; more than this is a flood. */
const maxWaiting = 1000;

/** Single-use tokens, each for one request, valid for a minute. */
export class Tokens<T> {
  readonly #waiting = new Map<string, { request: T; expires: number }>();
  readonly #now: () => number;

  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Throws `resource-exhausted` when too many requests wait for their client. */
  issue(request: T): string {
    const now = this.#now();
    // Insertion order is order of expiry.
    for (const [token, { expires }] of this.#waiting) {
      if (expires > now) break;
      this.#waiting.delete(token);
    }
    if (this.#waiting.size >= maxWaiting)
      throw new RuntimeError(
        "resource-exhausted",
        `Cannot open another stream: ${maxWaiting} wait for their client`,
      );
    const token = randomBytes(16).toString("base64url");
    this.#waiting.set(token, { request, expires: now + lifetime });
    return token;
  }

  /** The token's request, once. */
  redeem(token: string): T | undefined {
    const entry = this.#waiting.get(token);
    this.#waiting.delete(token);
    return entry && entry.expires > this.#now() ? entry.request : undefined;
  }
}
