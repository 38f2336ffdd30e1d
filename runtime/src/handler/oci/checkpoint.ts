import { existsSync } from "node:fs";
import { copyFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { startProgram } from "../../linux/start-program.ts";
import type { Spec } from "../../spec/oci.ts";
import type { ContainerRef } from "../handler.ts";
import { failureOf, mustRun, type RuntimeCommand, run } from "./command.ts";

/* Checkpoints of processes on the node's own kernel, by CRIU, which the OCI runtime drives. */

/** The last errors in CRIU's log, without time stamps, source lines, and that it failed. */
export const criuFailure = (log: string): string =>
  log
    .split("\n")
    .filter((line) => line.includes("Error"))
    .map((line) =>
      line
        .replace(/^\(\d+\.\d+\)\s*(\d+:\s*)?/, "")
        .replace(/^Error \([^)]*\):\s*/, "")
        .trim(),
    )
    .filter((line) => !/FAILED\.?$/.test(line))
    .slice(-3)
    .join("; ");

/** Asked once: what CRIU says of a kernel stays. One that is not there may come. */
let looksGood = false;

/**
 * Throws where the OCI runtime has no such command (it was built without CRIU, as Debian 12's crun), and in CRIU's own
 * words where that is not installed or cannot work with this kernel.
 */
export const requireCriu = async (
  command: RuntimeCommand,
  verb: "checkpoint" | "restore",
  signal: AbortSignal,
): Promise<void> => {
  if ((await run(command, [verb, "--help"], signal)).code !== 0)
    throw new RuntimeError(
      "failed-precondition",
      `The OCI runtime ${command.path} has no command ${verb}: it was built without CRIU`,
    );
  if (looksGood) return;
  const { code, said } = await criuCheck(signal);
  if (code === undefined)
    throw new RuntimeError("failed-precondition", `CRIU is not installed on this node (criu: ${said})`);
  if (code !== 0)
    throw new RuntimeError(
      "failed-precondition",
      `CRIU cannot work with this node's kernel: ${criuFailure(said) || said.trim().slice(-300)}`,
    );
  looksGood = true;
};

/** `code` is undefined where it could not be run. */
const criuCheck = (signal: AbortSignal): Promise<{ code: number | undefined; said: string }> =>
  new Promise((resolve, reject) => {
    const child = startProgram("criu", ["check"], {
      stdio: ["ignore", "pipe", "pipe"],
      signal,
      killSignal: "SIGKILL",
    });
    let said = "";
    for (const stream of [child.stdout, child.stderr])
      stream.on("data", (chunk: Buffer) => {
        said = (said + chunk.toString()).slice(-16_384);
      });
    child.once("error", (error: NodeJS.ErrnoException) =>
      signal.aborted
        ? reject(signal.reason)
        : resolve({ code: undefined, said: error.code ?? error.message }),
    );
    child.once("close", (code) => resolve({ code: code ?? 255, said }));
  });

/** There while a container stands still for us: who finds it after a crash lets the container go on. */
const paused = (stateDir: string): string => join(stateDir, "paused");

/** Lets a container go on that stands still for us, or did for a daemon which ended in the middle of a checkpoint. */
export const resume = async (
  command: RuntimeCommand,
  { id, stateDir }: Pick<ContainerRef, "id" | "stateDir">,
): Promise<void> => {
  if (!existsSync(paused(stateDir))) return;
  await run(command, ["resume", id], AbortSignal.timeout(10_000));
  await rm(paused(stateDir), { force: true });
};

/**
 * The container's processes as CRIU's images in `directory`/checkpoint and its specification; while it stands still,
 * what `saveRoot` saves, so that the one is what the other knows of. It goes on. Open TCP connections are saved, and
 * closed in what is restored. Whatever keeps CRIU from it is the node's or the container's condition, not a defect of
 * the request.
 */
export const checkpointTo = async (
  command: RuntimeCommand,
  { id, stateDir }: Pick<ContainerRef, "id" | "stateDir">,
  directory: string,
  saveRoot: (file: string) => Promise<void>,
  signal: AbortSignal,
): Promise<void> => {
  await requireCriu(command, "checkpoint", signal);
  await using undo = new AsyncDisposableStack();
  const work = join(directory, "work");
  await mkdir(work, { mode: 0o700 });
  undo.defer(() => rm(work, { recursive: true, force: true }));
  const images = join(directory, "checkpoint");
  undo.defer(() => resume(command, { id, stateDir }));
  await writeFile(paused(stateDir), "");
  await mustRun(command, ["pause", id], `let container "${id}" stand still`, signal);
  const options = ["--leave-running", "--tcp-established", "--file-locks"];
  const { code, stderr } = await run(
    command,
    ["checkpoint", ...options, "--image-path", images, "--work-path", work, id],
    signal,
  );
  if (code !== 0) throw await refusal(join(work, "dump.log"), failureOf(stderr) || `exit code ${code}`);
  await saveRoot(join(directory, "rootfs-diff.tar"));
  await copyFile(join(stateDir, "config.json"), join(directory, "spec.dump"));
};

/** What CRIU wrote into its log, or else the runtime's own words. */
export const refusal = async (logFile: string, otherwise: string): Promise<RuntimeError> => {
  const log = await readFile(logFile, "utf8").catch(() => "");
  return new RuntimeError("failed-precondition", criuFailure(log) || otherwise);
};

/** Files of a restore in the container's state directory, where conmon has CRIU work. */
export const restoreFiles = {
  options: "criu.conf",
  log: "restore.log",
  statistics: "stats-restore",
} as const;

/**
 * The specification of a container that is restored. CRIU is told by a file, which runc finds by this annotation, to
 * close TCP connections: they were with another pod's address.
 */
export const specToRestore = async (spec: Spec, stateDir: string): Promise<Spec> => {
  const file = join(stateDir, restoreFiles.options);
  await writeFile(file, "tcp-close\n");
  return { ...spec, annotations: { ...spec.annotations, "org.criu.config": file } };
};
