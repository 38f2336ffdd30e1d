import { parentPort } from "node:worker_threads";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { createLinux } from "../linux/linux-ffi.ts";
import { createTarReader, type TarReader } from "./tar.ts";
import { measureTree, removeTree } from "./tree.ts";
import { createUnpacker } from "./unpack.ts";
import type { FromWorker, ToWorker } from "./workers.ts";

/* The thread that touches many files: everything in it is synchronous, one job at a time. */

const port = parentPort!;
const linux = createLinux();
let job: { reader: TarReader; unpacker: ReturnType<typeof createUnpacker> } | undefined;

const answer = (message: FromWorker) => port.postMessage(message);

const handle = (message: ToWorker): void => {
  switch (message.do) {
    case "unpack": {
      const unpacker = createUnpacker(message.target, linux);
      job = { unpacker, reader: createTarReader(unpacker) };
      return;
    }
    case "chunk":
      // After a failure the rest of what was on its way is dropped.
      job?.reader.push(message.bytes);
      answer({ is: "taken", bytes: message.bytes.byteLength });
      return;
    case "end":
      if (job === undefined) return;
      job.reader.finish();
      job.unpacker.finish();
      job = undefined;
      answer({ is: "done", value: undefined });
      return;
    case "stop":
      job?.unpacker.abandon();
      job = undefined;
      answer({ is: "done", value: undefined });
      return;
    case "measure":
      answer({ is: "done", value: measureTree(message.path) });
      return;
    case "remove":
      removeTree(message.path);
      answer({ is: "done", value: undefined });
      return;
    case "quit":
      port.close();
      return;
    default:
      message satisfies never;
  }
};

port.on("message", (message: ToWorker) => {
  try {
    handle(message);
  } catch (error) {
    job?.unpacker.abandon();
    job = undefined;
    const { code } = error as { code?: string };
    answer({
      is: "failed",
      code:
        error instanceof RuntimeError ? error.code : code === "ENOSPC" ? "resource-exhausted" : "internal",
      message: messageOf(error),
    });
  }
});
