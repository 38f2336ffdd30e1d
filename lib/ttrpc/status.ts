import { type ErrorCode, messageOf, RuntimeError } from "../std/errors.ts";

/** google.rpc.Code, as far as Bulkhead has a code for it. */
const codes: Record<number, ErrorCode> = {
  1: "cancelled",
  2: "unknown",
  3: "invalid-argument",
  4: "deadline-exceeded",
  5: "not-found",
  6: "already-exists",
  7: "permission-denied",
  8: "resource-exhausted",
  9: "failed-precondition",
  12: "unimplemented",
  13: "internal",
  14: "unavailable",
};

const notFound = 5;
/** Of a peer's message: it goes into errors, records and logs. */
const maxMessage = 8 << 10;

const numbers = new Map(Object.entries(codes).map(([number, code]) => [code, Number(number)]));

/** The error that a status other than OK stands for. */
export const errorOfStatus = (
  method: string,
  { code, message }: { code: number; message: string },
): RuntimeError => {
  // ttrpc-rust's services answer so for methods that they do not have. What was asked about is there.
  const missing = code === notFound && message.endsWith(`/${method} is not supported`);
  return new RuntimeError(
    missing ? "unimplemented" : (codes[code] ?? "unknown"),
    `${method}: ${message.slice(0, maxMessage)}`,
  );
};

/** The status that tells the peer of an error. */
export const statusOfError = (error: unknown): { code: number; message: string } => ({
  code: error instanceof RuntimeError ? (numbers.get(error.code) ?? 2) : 2,
  message: messageOf(error),
});

/** The error of a call whose signal came before its answer. */
export const cancelled = (method: string, signal: AbortSignal): RuntimeError =>
  signal.reason instanceof RuntimeError
    ? signal.reason
    : signal.reason instanceof Error && signal.reason.name === "TimeoutError"
      ? new RuntimeError("deadline-exceeded", `${method}: no answer in time`, { cause: signal.reason })
      : new RuntimeError("cancelled", `${method}: cancelled`, { cause: signal.reason });
