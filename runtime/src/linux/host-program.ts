import { execFile } from "node:child_process";
import { promisify } from "node:util";

const run = promisify(execFile);
const env = { ...process.env, PATH: "/usr/sbin:/sbin:/usr/bin:/bin", LC_ALL: "C" };

/** Runs a program that every node has, of util-linux and the like, to its end. Rejects when it fails or `signal` aborts. */
export const runHostProgram = (file: string, args: string[], signal: AbortSignal) =>
  run(file, args, { env, signal });
