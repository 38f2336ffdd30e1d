import { showCritest } from "../cri/critest.ts";
import { addShimHandler, runtimeDown, runtimeRecord, runtimeUp } from "./runtime.ts";

/** `--handler NAME` or `--handler=NAME` is ours, for critest's longer name; all the rest is critest's. */
const forCritest = (args: readonly string[]): string[] =>
  args.map((arg) => arg.replace(/^--?handler(?==|$)/, "-runtime-handler"));

/**
 * Runs critest (sigs.k8s.io/cri-tools) with the given flags, against the daemon of `./dev runtime up` if it runs, with
 * whatever registries that was given, else against one for this run only, with the test images. Returns its exit code.
 */
export const critest = async (args: readonly string[], signal: AbortSignal): Promise<number> => {
  await using undo = new AsyncDisposableStack();
  let record = await runtimeRecord();
  if (record === undefined) {
    undo.defer(async () => void (await runtimeDown()));
    record = await runtimeUp({ mirror: [], testImages: true }, signal);
  }
  await addShimHandler();
  return await showCritest(record.socket, forCritest(args), signal);
};
