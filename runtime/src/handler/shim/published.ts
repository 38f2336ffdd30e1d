import {
  existsSync,
  type FSWatcher,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  watch,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import { type Any, AnySchema } from "@bufbuild/protobuf/wkt";

const maxEvents = 1024;
const maxEvent = 64 << 10;

/**
 * Shims of before containerd 1.3 know no events socket: they call the program of `-publish-binary` with the event
 * (an Any) on stdin. Ours leaves it in a directory, where the daemon finds it, also one that was away meanwhile.
 */
const publisher = (directory: string): string => `#!/bin/sh
# Takes the event of a container shim for Bulkhead's runtime.
set -- '${directory}'/*
[ $# -lt ${maxEvents} ] || exit 0
head -c ${maxEvent} >'${directory}'/.$$ && mv '${directory}'/.$$ '${directory}'/$$
`;

export type Published = Disposable & {
  /** The program for `-publish-binary`. */
  program: string;
};

/** `directory` takes the events, on tmpfs; `programs` is where programs may be run from. */
export function takePublished(directory: string, programs: string, take: (event: Any) => void): Published {
  if (directory.includes("'"))
    throw new TypeError(`Cannot take events in ${directory}: it has a quote in its name`);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  mkdirSync(programs, { recursive: true, mode: 0o755 });
  const program = join(programs, "bulkhead-shim-event");
  writeFileSync(`${program}.new`, publisher(directory), { mode: 0o755 });
  renameSync(`${program}.new`, program);
  const read = () => {
    for (const name of existsSync(directory) ? readdirSync(directory) : []) {
      if (name.startsWith(".")) continue;
      const path = join(directory, name);
      try {
        take(fromBinary(AnySchema, readFileSync(path)));
      } catch {
        // No event, or one that another look has taken: hints are all they are.
      }
      rmSync(path, { force: true });
    }
  };
  const watcher: FSWatcher = watch(directory, read);
  watcher.unref();
  read();
  return { program, [Symbol.dispose]: () => watcher.close() };
}
