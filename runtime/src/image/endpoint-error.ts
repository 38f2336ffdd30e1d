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

/** Retry-After in milliseconds: seconds or a date (RFC 9110, section 10.2.3). */
export const retryAfter = (value: string | undefined, now = Date.now()): number | undefined => {
  if (value === undefined) return undefined;
  const milliseconds = /^[0-9]+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - now;
  return Number.isFinite(milliseconds) ? Math.max(0, milliseconds) : undefined;
};
