import { once } from "node:events";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Namespaces } from "../handler/handler.ts";
import { type Linux, MountFlags } from "../linux/linux.ts";
import { startProgram } from "../linux/start-program.ts";
import type { IdMapping } from "../spec/oci.ts";

/** Which ids of the node the ids of a user namespace are (user_namespaces(7)). */
export type IdMappings = { uids: readonly IdMapping[]; gids: readonly IdMapping[] };

type Kind = "net" | "ipc" | "uts";

const timeoutMs = 20_000;

/** One line of /proc/PID/uid_map for each mapping. */
const mapText = (mappings: readonly IdMapping[]): string =>
  mappings.map(({ containerID, hostID, size }) => `${containerID} ${hostID} ${size}\n`).join("");

/**
 * Makes a user namespace with these mappings and the other namespaces owned by it, and pins them all as files in
 * `dir`. A small process makes them, because one with threads cannot; it is gone when this resolves. `program` is
 * bulkhead-exec-reaper (monitor/exec/reaper.c).
 */
export const createOwnedNamespaces = async (
  dir: string,
  which: readonly Kind[],
  hostname: string,
  mappings: IdMappings,
  { program, linux }: { program: string; linux: Pick<Linux, "mount"> },
  signal: AbortSignal,
): Promise<Namespaces> => {
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const kinds = which.map((kind) => kind[0]).join("");
  const child = startProgram(program, ["-n", kinds, hostname], {
    stdio: ["ignore", "ignore", "pipe", "pipe"],
    signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
    killSignal: "SIGKILL",
  });
  const ended = once(child, "exit").catch(() => {});
  const reports = child.stdio[3] as Duplex;
  reports.on("error", () => {});
  let failure = "";
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    failure += text.slice(0, 1024);
  });
  child.on("error", (error) => {
    failure += error.message;
  });
  try {
    const lines = linesOf(reports);
    const expectLine = async (wanted: string): Promise<void> => {
      const { value: line } = await lines.next();
      if (line === wanted) return;
      await ended;
      throw new RuntimeError(
        "failed-precondition",
        `Cannot make a user namespace: ${failure.trim() || line || "its process ended"}`,
      );
    };
    await expectLine("mapped?");
    const proc = `/proc/${child.pid}`;
    await writeFile(`${proc}/uid_map`, mapText(mappings.uids));
    await writeFile(`${proc}/gid_map`, mapText(mappings.gids));
    reports.write("m");
    await expectLine("ready");
    const pinned: Namespaces = {};
    for (const kind of ["user", ...which] as const) {
      const file = join(dir, kind);
      await writeFile(file, "", { mode: 0o600 });
      await linux.mount(`${proc}/ns/${kind}`, file, "", MountFlags.BIND, "");
      pinned[kind] = file;
    }
    return pinned;
  } finally {
    reports.destroy();
    await ended;
  }
};

async function* linesOf(stream: Duplex): AsyncGenerator<string> {
  let rest = "";
  for await (const chunk of stream.setEncoding("utf8")) {
    const parts = (rest + chunk).split("\n");
    rest = parts.pop() ?? "";
    yield* parts;
  }
}
