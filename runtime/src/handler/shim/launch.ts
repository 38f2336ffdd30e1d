import { existsSync, mkdirSync } from "node:fs";
import { basename } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import type { Any } from "@bufbuild/protobuf/wkt";
import { DeleteResponseSchema } from "@bulkhead/lib/gen/shim_task_v3_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { span } from "@bulkhead/lib/tracing/span.ts";
import { type Bootstrap, bootstrapInput, type LaunchForm, launchForms, parseBootstrap } from "./bootstrap.ts";
import { grpcAddress, type LaunchContext, namespace, runShim, type ShimRun } from "./command.ts";
import { lowersOomScore, serveDirectly } from "./serve-directly.ts";

/** What a handler's shims were last seen to understand. */
export type KnownForm = { form?: LaunchForm };

export type Launched = Bootstrap & {
  /** When its launch began, in clock ticks since boot; see {@link ShimRun}. */
  since: bigint;
};

/**
 * Starts the shim of a pod in its bundle and returns where it listens. What goes into `start` differs between
 * shims: one that refuses a form is offered the next, and what it took is remembered in `known`. `start` ends, the
 * shim itself stays in a process group of its own.
 */
export async function launchShim(
  context: LaunchContext,
  launch: { id: string; bundle: string; options: Any | undefined; known: KnownForm },
  signal: AbortSignal,
): Promise<Launched> {
  const { id, bundle, options, known } = launch;
  mkdirSync(context.socketDir, { recursive: true, mode: 0o711 });
  const params = {
    id,
    namespace,
    ttrpcAddress: context.eventsAddress,
    grpcAddress: grpcAddress(context),
    publisher: context.publisher,
    socketDir: context.socketDir,
    options,
  };
  const refused: { form: LaunchForm; run: ShimRun }[] = [];
  for (const form of launchForms(known.form, options !== undefined)) {
    const run = await span(`${basename(context.config.binary)} start`, { "bulkhead.shim.form": form }, () =>
      runShim(context, id, bundle, ["start"], bootstrapInput(form, params), signal),
    );
    if (run.code === 0) {
      const reply = parseBootstrap(run.stdout);
      known.form = form;
      return { ...reply, since: run.since };
    }
    // A shim that may not lower its OOM score fails every time, whatever it is fed.
    if (lowersOomScore(run.stderr))
      return { ...(await serveDirectly(context, id, bundle, signal)), since: run.since };
    refused.push({ form, run });
  }
  throw new RuntimeError("internal", `Cannot start the shim ${context.config.binary}: ${reasons(refused)}`);
}

/** What a shim said to each form, once where it says the same to several. */
const reasons = (refused: { form: LaunchForm; run: ShimRun }[]): string => {
  const said = Map.groupBy(refused, ({ run }) => `exit code ${run.code}: ${run.stderr.slice(0, 600)}`);
  if (said.size === 1) return [...said.keys()].join();
  return [...said]
    .map(([text, each]) => `with ${each.map(({ form }) => form).join(", ")} ${text}`)
    .join("; ");
};

/**
 * `SHIM delete`: frees what a dead shim left of a container (its processes, mounts and cgroups).
 * undefined when the shim found nothing that it could free.
 */
export async function deleteLeftovers(
  context: LaunchContext,
  id: string,
  bundle: string,
  signal: AbortSignal,
): Promise<{ code: number } | undefined> {
  if (!existsSync(bundle)) return undefined;
  const run = await runShim(context, id, bundle, ["-bundle", bundle, "delete"], undefined, signal);
  if (run.code !== 0) return undefined;
  try {
    return { code: fromBinary(DeleteResponseSchema, run.stdout).exitStatus };
  } catch {
    // It freed what there was, and says something else of it than the protocol has.
    return undefined;
  }
}
