import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** Why one endpoint could not serve; decides whether to retry and what the user is told. */
export class EndpointError extends Error {
  readonly kind: "not-found" | "denied" | "unavailable" | "invalid";
  readonly retryAfterMs: number | undefined;
  constructor(
    kind: EndpointError["kind"],
    message: string,
    options: ErrorOptions & { retryAfterMs?: number } = {},
  ) {
    super(message, options);
    this.kind = kind;
    this.retryAfterMs = options.retryAfterMs;
  }
}

/**
 * No endpoint of a registry could be reached. The kubelet tells this from other failures by the first word of the
 * message, which it keeps only for the code Unknown.
 */
export class RegistryUnavailable extends RuntimeError {
  constructor(message: string, options?: ErrorOptions) {
    super("unknown", message, options);
  }
}

const longestPauseMs = 30_000;

/** Milliseconds before attempt `after` + 1: growing and scattered, as long as the registry wants, within bounds. */
export const pauseBefore = (after: number, retryAfterMs = 0): number =>
  Math.min(Math.max(retryAfterMs, 200 * 2 ** (after - 1) * (0.75 + Math.random() / 2)), longestPauseMs);

/** Retry-After in milliseconds: seconds or a date (RFC 9110, section 10.2.3). */
export const retryAfter = (value: string | undefined, now = Date.now()): number | undefined => {
  if (value === undefined) return undefined;
  const milliseconds = /^[0-9]+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - now;
  return Number.isFinite(milliseconds) ? Math.max(0, milliseconds) : undefined;
};
