/**
 * The codes an error of Bulkhead can carry. Each program maps them to its own protocol in one place:
 * the runtime to gRPC status codes, the agent to condition reasons.
 */
export type ErrorCode =
  | "not-found"
  | "already-exists"
  | "invalid-argument"
  | "failed-precondition"
  | "resource-exhausted"
  | "unavailable"
  | "deadline-exceeded"
  | "cancelled"
  | "permission-denied"
  | "unimplemented"
  | "unknown"
  | "internal";

/**
 * An error with a code and a message that a user can act on. Messages say what could not be done and why:
 * `Cannot pull image "x": the registry answered 404`.
 */
export class RuntimeError extends Error {
  readonly code: ErrorCode;
  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "RuntimeError";
    this.code = code;
  }
}

/** True when `error` is a {@link RuntimeError} with the given code. */
export const hasCode = (error: unknown, code: ErrorCode): error is RuntimeError =>
  error instanceof RuntimeError && error.code === code;

/** What failed first, where taking back what had been made (`await using`) failed too. */
export const firstFailure = (error: unknown): unknown =>
  error instanceof SuppressedError ? firstFailure(error.suppressed) : error;

/** The message of anything that was thrown. */
export const messageOf = (error: unknown): string => {
  if (error instanceof SuppressedError)
    return `${messageOf(error.suppressed)}; taking it back failed too: ${messageOf(error.error)}`;
  return error instanceof Error ? error.message : String(error);
};
