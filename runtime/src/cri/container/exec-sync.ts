import { Writable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { ExecSyncResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { waitFor } from "../../record/lock.ts";
import type { Runtime, RuntimeMethods } from "../runtime.ts";
import { execIn } from "./streaming-backend.ts";

/** kubelet takes no message above 16 MiB: both outputs together stay below it. */
const maxOutput = 16 * 1024 * 1024 - 4096;
/** How long the end of a command that ran out of time may take. */
const killMs = 2_000;
/** setTimeout's longest wait. */
const maxTimeout = 2 ** 31 - 1;

/** ExecSync: a command's output and exit code. A timeout ends the process and is DeadlineExceeded. */
export const execSync =
  (runtime: Runtime): RuntimeMethods["execSync"] =>
  async (request, signal) => {
    const budget = { left: maxOutput };
    const stdout = collector(budget);
    const stderr = collector(budget);
    const timeout = Number(request.timeout) * 1000;
    const deadline =
      timeout > 0 ? AbortSignal.any([signal, AbortSignal.timeout(Math.min(timeout, maxTimeout))]) : signal;
    const exec = await execIn(
      runtime,
      request.containerId,
      request.cmd,
      { stdout: stdout.sink, stderr: stderr.sink, tty: false },
      deadline,
    ).catch((error: unknown) => {
      throw timedOut(deadline, signal, timeout) ?? error;
    });
    try {
      const exitCode = await waitFor(exec.exited, deadline);
      return create(ExecSyncResponseSchema, { stdout: stdout.bytes(), stderr: stderr.bytes(), exitCode });
    } catch (error) {
      // A runtime that does not answer this either does not hold the caller up.
      const killed = exec.kill().catch((err) => runtime.log.warn({ err }, "cannot kill a command"));
      await Promise.race([killed, sleep(killMs, undefined, { ref: false })]);
      throw timedOut(deadline, signal, timeout) ?? error;
    }
  };

const timedOut = (deadline: AbortSignal, signal: AbortSignal, timeout: number): RuntimeError | undefined =>
  deadline.aborted && !signal.aborted
    ? new RuntimeError("deadline-exceeded", `Command did not end within ${timeout / 1000} s and was killed`)
    : undefined;

/** Keeps the first bytes and lets the rest go, so that the process is not held up. */
const collector = (budget: { left: number }) => {
  const chunks: Buffer[] = [];
  const sink = new Writable({
    write: (chunk: Buffer, _encoding, done) => {
      const kept = chunk.subarray(0, budget.left);
      if (kept.length > 0) chunks.push(kept);
      budget.left -= kept.length;
      done();
    },
  });
  return { sink, bytes: (): Uint8Array => Buffer.concat(chunks) };
};
