import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { connectSocket } from "@bulkhead/lib/ttrpc/socket.ts";
import { startProgram } from "../../linux/start-program.ts";
import type { Bootstrap } from "./bootstrap.ts";
import { argumentsOf, environment, type LaunchContext } from "./command.ts";

/**
 * gVisor's shim gives itself the OOM score -999 and fails when it may not, which is so wherever the daemon lacks
 * CAP_SYS_RESOURCE (a container, a nested node).
 */
export const lowersOomScore = (stderr: string): boolean => /OOM score/i.test(stderr) && !mayLowerOomScore();

let lowering: boolean | undefined;
const mayLowerOomScore = (): boolean => {
  lowering ??= (() => {
    const file = "/proc/self/oom_score_adj";
    const before = readFileSync(file, "utf8");
    try {
      writeFileSync(file, "-999");
      writeFileSync(file, before);
      return true;
    } catch {
      return false;
    }
  })();
  return lowering;
};

/** The socket's file is there before anybody accepts. */
const listens = async (address: string, signal: AbortSignal): Promise<boolean> => {
  try {
    (await connectSocket(address, signal)).destroy();
    return true;
  } catch {
    return false;
  }
};

/**
 * What `start` does at its core, without the OOM score: the shim run with no command is the server itself, on the
 * socket that -socket names. The name is relative to the bundle, so that no path is too long for it.
 */
export async function serveDirectly(
  context: LaunchContext,
  id: string,
  bundle: string,
  signal: AbortSignal,
): Promise<Bootstrap> {
  const address = `unix://${join(bundle, "shim.sock")}`;
  rmSync(join(bundle, "shim.sock"), { force: true });
  // The shim removes the socket named here when it ends.
  writeFileSync(join(bundle, "address"), address);
  const child = startProgram(context.config.binary, [...argumentsOf(context, id), "-socket", "shim.sock"], {
    cwd: bundle,
    env: environment(context),
    detached: true,
    stdio: "ignore",
  });
  let failed: string | undefined;
  child.once("error", (error) => {
    failed = error.message;
  });
  child.once("exit", (code, signo) => {
    failed ??= `it ended at once with ${signo ?? `code ${code}`}`;
  });
  child.unref();
  if (child.pid !== undefined) writeFileSync(join(bundle, "shim.pid"), String(child.pid));
  try {
    while (!(await listens(address, signal))) {
      if (failed)
        throw new RuntimeError("internal", `Cannot start the shim ${context.config.binary}: ${failed}`);
      await sleep(2, undefined, { signal });
    }
  } catch (error) {
    child.kill("SIGKILL");
    throw error;
  }
  return { version: 2, address, protocol: "ttrpc" };
}
