import { setTimeout as sleep } from "node:timers/promises";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Host } from "./host.ts";

/** Waiting for what a service of the host does. */

/** Thrown while polling: waiting longer cannot help. */
export class Hopeless extends Error {}

/** A service that systemd had to start again more than `most` times since it was told to will end again. */
export async function refuseCrashLoop(
  host: Host,
  unit: string,
  most: number,
  signal: AbortSignal,
): Promise<void> {
  const shown = await host.run(["systemctl", "show", unit, "-p", "NRestarts", "-p", "ActiveState"], {
    signal,
  });
  const restarts = Number(/^NRestarts=([0-9]+)$/m.exec(shown.stdout)?.[1] ?? 0);
  if (restarts > most || /^ActiveState=failed$/m.test(shown.stdout)) {
    throw new Hopeless(`${unit} ends again and again`);
  }
}

/** The end of a journal: what the service said itself; what systemd says of it only where it said nothing. */
export const lastWords = (journal: string, unit: string): string => {
  const lines = journal.split("\n").filter((line) => line.trim() !== "");
  const own = lines.filter(
    (line) =>
      !line.startsWith(`${unit}: `) && !/^(Started|Stopped|Starting|This usually indicates) /.test(line),
  );
  return (own.length > 0 ? own : lines).slice(-5).join("\n").slice(-500);
};

/** The error with the last words of a service's log. */
export async function withLog(host: Host, unit: string, error: unknown): Promise<RuntimeError> {
  const journal = await host
    .run(["journalctl", "-u", unit, "-n", "50", "-o", "cat", "--no-pager"], {
      signal: AbortSignal.timeout(10_000),
    })
    .catch(() => undefined);
  const words = lastWords(journal?.stdout ?? "", unit);
  const end = words === "" ? "" : `; its log ends with: ${words}`;
  return new RuntimeError("unavailable", `${messageOf(error)}${end}`, { cause: error });
}

/** Asks until `ask` has an answer; the last reason why it had none goes into the error. */
export async function poll<T>(
  what: string,
  timeoutMs: number,
  signal: AbortSignal,
  ask: (signal: AbortSignal) => Promise<T | undefined>,
  everyMs = 100,
): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  let why = "";
  while (performance.now() < deadline) {
    signal.throwIfAborted();
    try {
      const answer = await ask(AbortSignal.any([signal, AbortSignal.timeout(5000)]));
      if (answer !== undefined) return answer;
    } catch (error) {
      if (error instanceof Hopeless)
        throw new RuntimeError("unavailable", `${what}: ${error.message}`, { cause: error });
      why = `: ${messageOf(error)}`;
    }
    await sleep(everyMs, undefined, { signal });
  }
  throw new RuntimeError("deadline-exceeded", `${what} within ${timeoutMs / 1000} s${why}`);
}
