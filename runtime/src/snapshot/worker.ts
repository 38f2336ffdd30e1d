import { createHash } from "node:crypto";
import { parentPort } from "node:worker_threads";
import { type ErrorCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { createLinux } from "../linux/linux-ffi.ts";
import { type Applier, createApplier } from "./apply.ts";
import { decompressed } from "./decompress.ts";
import { createDirectoryTree } from "./directory-tree.ts";
import { createErofsTree } from "./erofs/tree.ts";
import { digestOf } from "./erofs/verify.ts";
import type { LayerTree } from "./layer-tree.ts";
import type { LayerBlob } from "./snapshotter.ts";
import { createTarReader, type TarReader } from "./tar.ts";
import { measureTree, removeTree } from "./tree.ts";
import type { FromWorker, ToWorker, UnpackTarget } from "./workers.ts";

/* The thread that touches many files. Its work on trees is synchronous; blobs come in by streams. */

type Job = { tree: LayerTree; applier: Applier; reader: TarReader; stop: AbortController };

const port = parentPort!;
const linux = createLinux();
const jobs = new Map<number, Job>();

const answer = (message: FromWorker) => port.postMessage(message);

const begin = (job: number, { form, path, limits }: UnpackTarget): void => {
  const tree = form === "erofs" ? createErofsTree(path) : createDirectoryTree(path, linux);
  const applier = createApplier(tree, limits);
  jobs.set(job, { tree, applier, reader: createTarReader(applier), stop: new AbortController() });
};

/** All of the tar is there. */
const read = (job: number): void => {
  const { reader, applier } = jobs.get(job)!;
  reader.finish();
  answer({ is: "done", job, value: { needsBelow: applier.needsBelow() } });
};

const readBlob = async (job: number, { file, diffId }: LayerBlob): Promise<void> => {
  const { reader, stop } = jobs.get(job)!;
  const algorithm = diffId?.slice(0, diffId.indexOf(":"));
  const hash = algorithm === undefined ? undefined : createHash(algorithm);
  for await (const chunk of decompressed(file, stop.signal)) {
    stop.signal.throwIfAborted();
    hash?.update(chunk);
    reader.push(chunk);
  }
  stop.signal.throwIfAborted();
  const found = hash && `${algorithm}:${hash.digest("hex")}`;
  if (found !== diffId)
    throw new RuntimeError(
      "failed-precondition",
      `the content of a layer has the digest ${found}, its image says ${diffId}`,
    );
  read(job);
};

const handle = (message: ToWorker): void => {
  switch (message.do) {
    case "unpack":
      begin(message.job, message.target);
      return;
    case "blob":
      readBlob(message.job, message.blob).catch((error) => fail(message.job, error));
      return;
    case "chunk":
      // After a failure the rest of what was on its way is dropped.
      jobs.get(message.job)?.reader.push(message.bytes);
      answer({ is: "taken", job: message.job, bytes: message.bytes.byteLength });
      return;
    case "end":
      if (jobs.has(message.job)) read(message.job);
      return;
    case "seal": {
      const value = jobs.get(message.job)!.applier.seal(message.parents);
      jobs.delete(message.job);
      answer({ is: "done", job: message.job, value });
      return;
    }
    case "stop":
      drop(message.job);
      answer({ is: "done", job: message.job, value: undefined });
      return;
    case "measure":
      answer({ is: "done", job: message.job, value: measureTree(message.path) });
      return;
    case "digest":
      answer({ is: "done", job: message.job, value: digestOf(message.path) });
      return;
    case "remove":
      removeTree(message.path);
      answer({ is: "done", job: message.job, value: undefined });
      return;
    case "quit":
      port.close();
      return;
    default:
      message satisfies never;
  }
};

const drop = (job: number): void => {
  jobs.get(job)?.stop.abort(new RuntimeError("cancelled", "Cannot unpack layer: it was cancelled"));
  jobs.get(job)?.tree.abandon();
  jobs.delete(job);
};

const fail = (job: number, error: unknown): void => {
  // What was stopped has had its answer.
  if (error instanceof RuntimeError && error.code === "cancelled" && !jobs.has(job)) return;
  drop(job);
  answer({ is: "failed", job, ...failureOf(error) });
};

/** What the kernel says, in words that a user can do something about. */
const failureOf = (error: unknown): { code: ErrorCode; message: string } => {
  const message = messageOf(error);
  if (error instanceof RuntimeError) return { code: error.code, message };
  const { code } = error as { code?: string };
  if (code === "ENOSPC" || code === "EDQUOT")
    return {
      code: "resource-exhausted",
      message: `Cannot unpack layer: the disk of the layers is full, or has no inodes left (${message})`,
    };
  if (code === "ENAMETOOLONG" || code === "EFBIG" || code === "EMLINK")
    return { code: "invalid-argument", message: `Cannot unpack layer: ${message}` };
  return { code: "internal", message };
};

port.on("message", (message: ToWorker) => {
  try {
    handle(message);
  } catch (error) {
    if (message.do !== "quit") fail(message.job, error);
  }
});
