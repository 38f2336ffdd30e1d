import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";
import { startProgram } from "../linux/start-program.ts";
import type { Credentials } from "./auth.ts";
import { parseJson } from "./response.ts";

const deadlineMs = 20_000;
const maxOutput = 64 << 10;
const answer = z.object({ Username: z.string(), Secret: z.string() });

/**
 * Asks docker-credential-NAME for a registry's credentials, by the protocol of docker-credential-helpers: the server
 * on stdin, JSON on stdout. The helper gets a deadline, its output a bound; with its children it ends when we stop waiting.
 */
export const askHelper = async (
  name: string,
  server: string,
  signal: AbortSignal,
  bounds: { deadlineMs?: number } = {},
): Promise<Credentials> => {
  const program = `docker-credential-${name}`;
  const failed = (why: string): RuntimeError =>
    new RuntimeError("unavailable", `Cannot get credentials from ${program}: ${why}`);
  const { PATH, HOME } = process.env;
  const child = startProgram(program, ["get"], {
    cwd: "/",
    // A process group of its own, to be ended as a whole.
    detached: true,
    env: { ...(PATH && { PATH }), ...(HOME && { HOME }) },
    stdio: ["pipe", "pipe", "ignore"],
  });
  const { promise, resolve, reject } = Promise.withResolvers<{ code: number | null; text: string }>();
  const chunks: Buffer[] = [];
  let size = 0;
  child.once("error", (error) => reject(failed(messageOf(error))));
  child.stdin.on("error", () => {});
  child.stdout.on("data", (chunk: Buffer) => {
    size += chunk.length;
    if (size > maxOutput) reject(failed(`it says more than ${maxOutput} bytes`));
    else chunks.push(chunk);
  });
  child.once("close", (code) => resolve({ code, text: Buffer.concat(chunks).toString("utf8") }));
  child.stdin.end(server);
  const late = setTimeout(() => reject(failed("it takes too long")), bounds.deadlineMs ?? deadlineMs);
  const stop = (): void => reject(signal.reason);
  signal.addEventListener("abort", stop, { once: true });
  try {
    signal.throwIfAborted();
    const { code, text } = await promise;
    if (code !== 0) {
      if (text.includes("credentials not found")) return { kind: "anonymous" };
      // What it says goes to nobody: it may hold secrets.
      throw failed(`it ended with ${code}`);
    }
    const parsed = answer.safeParse(parseJson(Buffer.from(text)));
    if (!parsed.success) throw failed("its answer is not that of a credential helper");
    const { Username, Secret } = parsed.data;
    if (Username === "<token>") return { kind: "identity", token: Secret };
    return Username === "" && Secret === ""
      ? { kind: "anonymous" }
      : { kind: "password", username: Username, password: Secret };
  } finally {
    clearTimeout(late);
    signal.removeEventListener("abort", stop);
    child.stdout.destroy();
    if (child.pid !== undefined && !child.hasEnded) {
      try {
        process.kill(-child.pid, "SIGKILL");
      } catch {
        // It has ended, with all its children.
      }
    }
  }
};
