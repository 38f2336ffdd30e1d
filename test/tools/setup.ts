import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { nodeRootfs } from "../cluster/rootfs.ts";
import { installPackages } from "./apt.ts";
import { fetchArm64 } from "./arm64.ts";
import { buildCrate } from "./cargo.ts";
import { fetchCriu } from "./criu.ts";
import { fetchCrun } from "./crun.ts";
import { debianProgram, debianPrograms } from "./debian.ts";
import { fetchDocker } from "./docker.ts";
import { buildGo } from "./go.ts";
import { fetchKubectl } from "./kubectl.ts";
import type { KubernetesVersion } from "./kubernetes.ts";
import { type Need, type Step, startable, stepsFor } from "./plan.ts";

/** What is told of each step that had something to do. */
export type SetupReport = (
  step: string,
  event: "begin" | "end" | "failed",
  seconds: number,
  reason?: string,
) => void;

/** Does a step unless it is done. */
type Executors = {
  [K in Step["do"]]: (step: Extract<Step, { do: K }>, signal: AbortSignal) => Promise<unknown>;
};

const executors: Executors = {
  apt: ({ packages }, signal) => installPackages(packages, signal),
  go: ({ module, builds }, signal) => buildGo(module, builds, signal),
  kubectl: (_step, signal) => fetchKubectl(signal),
  criu: async (_step, signal) => {
    await fetchCriu(signal);
    await fetchCrun(signal);
  },
  docker: (_step, signal) => fetchDocker(signal),
  cargo: ({ build }, signal) => buildCrate(build, signal),
  debian: async ({ programs }, signal) => {
    for (const name of programs)
      await debianProgram(debianPrograms[name].pkg, debianPrograms[name].path, signal);
  },
  rootfs: (_step, signal) => nodeRootfs(signal),
  arm64: (_step, signal) => fetchArm64(signal),
};

/** So many steps run side by side: a download beside a compiler, or a linker beside a compiler. */
const lanes = 2;

/**
 * Does what a command needs of the machine: packages, pinned programs, the nodes' root filesystem. All of it is
 * kept in the cache, so that a second call takes no time. The first failure ends the others, but for that of a dispensable step.
 */
export const setup = async (
  need: Need,
  kubernetes: readonly KubernetesVersion[],
  report: SetupReport,
  signal: AbortSignal,
): Promise<void> => {
  let waiting = stepsFor(need, kubernetes);
  const done = new Set<string>();
  const running = new Map<string, Promise<void>>();
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  while (waiting.length + running.size > 0) {
    for (const step of startable(waiting, done).slice(0, lanes - running.size)) {
      waiting = waiting.filter((other) => other !== step);
      running.set(
        step.id,
        doStep(step, report, either)
          .then(() => void done.add(step.id))
          .catch((error: unknown) => {
            waiting = [];
            failed.abort(error);
          })
          .finally(() => running.delete(step.id)),
      );
    }
    await Promise.race(running.values());
  }
  signal.throwIfAborted();
  if (failed.signal.aborted) throw failed.signal.reason;
};

const doStep = async (step: Step, report: SetupReport, signal: AbortSignal): Promise<void> => {
  const begun = performance.now();
  const seconds = (): number => (performance.now() - begun) / 1000;
  // What is there already is found in no time and not worth a line.
  const slow = setTimeout(() => report(step.id, "begin", seconds()), 500);
  try {
    await execute(step, signal);
  } catch (error) {
    if (!step.dispensable || signal.aborted) throw error;
    report(step.id, "failed", seconds(), messageOf(error));
    return;
  } finally {
    clearTimeout(slow);
  }
  if (seconds() > 0.5) report(step.id, "end", seconds());
};

const execute = <K extends Step["do"]>(
  step: Extract<Step, { do: K }>,
  signal: AbortSignal,
): Promise<unknown> => (executors[step.do] as Executors[K])(step, signal);
