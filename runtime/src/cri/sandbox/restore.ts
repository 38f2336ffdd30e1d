import { randomBytes } from "node:crypto";
import { mkdir } from "node:fs/promises";
import { isAbsolute } from "node:path";
import { create } from "@bufbuild/protobuf";
import {
  type ContainerConfig,
  RemovePodSandboxRequestSchema,
  RestoredContainerSchema,
  RestorePodResponseSchema,
  StartContainerRequestSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { takePod } from "../../checkpoint/read.ts";
import { podName } from "../../pod/store.ts";
import { createIn } from "../container/create.ts";
import { forgetRestore, isCheckpoint, restoreDir } from "../container/restore.ts";
import { startContainer } from "../container/start.ts";
import { cleanup, type Runtime, type RuntimeMethods, sandboxRef } from "../runtime.ts";
import { containersOf } from "./checkpoint.ts";
import { removePodSandbox } from "./remove.ts";
import { planPod, runPod } from "./run.ts";

/**
 * RestorePod: a new pod with the containers of a pod's checkpoint, which go on from where they were. Everything of
 * them is what the request says; of the checkpoint the memory image alone is taken, and the names of the containers
 * that are in it. The pod runs, or it is gone. A retry joins.
 */
export const restorePod =
  (runtime: Runtime): RuntimeMethods["restorePod"] =>
  async ({ checkpointPath, config, runtimeHandler, options, containerConfigs }, signal) => {
    const refuse = refusal(checkpointPath);
    if (!isAbsolute(checkpointPath) || checkpointPath.includes("\0"))
      refuse("invalid-argument", "it is not an absolute path");
    const [option] = Object.keys(options);
    if (option !== undefined) refuse("invalid-argument", `there is no option "${option.slice(0, 64)}"`);
    const plan = planPod(runtime, config, runtimeHandler);
    if (plan.loaded.handler.stageRestore === undefined)
      refuse("unimplemented", `handler "${plan.loaded.config.name}" restores no pods; gVisor's handlers do`);
    const podSandboxId = await runtime.starting.run(
      `pod ${podName(plan)}`,
      (both) => restore(runtime, checkpointPath, { ...plan, awaitsRestore: true }, containerConfigs, both),
      signal,
    );
    const restoredContainers = containersOf(runtime, podSandboxId).map((container) =>
      create(RestoredContainerSchema, {
        name: container.config.metadata?.name ?? "",
        containerId: container.id,
      }),
    );
    return create(RestorePodResponseSchema, { podSandboxId, restoredContainers });
  };

const refusal =
  (path: string) =>
  (code: RuntimeError["code"], why: string, cause?: unknown): never => {
    throw new RuntimeError(code, `Cannot restore from "${path}": ${why}`, { cause });
  };

const restore = async (
  runtime: Runtime,
  path: string,
  plan: ReturnType<typeof planPod>,
  configs: readonly ContainerConfig[],
  signal: AbortSignal,
): Promise<string> => {
  const refuse = refusal(path);
  const key = randomBytes(16).toString("hex");
  await using taken = new AsyncDisposableStack();
  taken.defer(() => forgetRestore(runtime, key));
  const into = restoreDir(runtime, key);
  await mkdir(into, { recursive: true, mode: 0o700 });
  const { dump, images } = await takePod(path, into, signal).catch((error: unknown) => {
    if (error instanceof RuntimeError) return refuse(error.code, error.message, error);
    throw error;
  });
  requireSame(
    dump.containers.map(({ name }) => name),
    configs.map((each) => each.metadata?.name ?? ""),
    refuse,
  );
  for (const { image } of configs)
    if (isCheckpoint(image?.image ?? "", runtime.images.get(image?.image ?? "")))
      refuse("invalid-argument", `"${image?.image}" is a checkpoint, and a container needs its own image`);
  const podSandboxId = await runPod(runtime, plan, signal);
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    await removePodSandbox(runtime)(create(RemovePodSandboxRequestSchema, { podSandboxId }), cleanup());
  });
  const pod = runtime.pods.require(podSandboxId);
  plan.loaded.handler.stageRestore?.(sandboxRef(runtime, pod), images, configs.length);
  const ids: string[] = [];
  for (const each of configs) ids.push(await createIn(runtime, podSandboxId, each, signal));
  // The memory image of all of them is loaded when the last one starts.
  for (const containerId of ids)
    await startContainer(runtime)(create(StartContainerRequestSchema, { containerId }), signal);
  undo.move();
  return podSandboxId;
};

/** The image holds just these containers; gVisor waits for every one of them. */
const requireSame = (
  saved: readonly string[],
  asked: readonly string[],
  refuse: ReturnType<typeof refusal>,
): void => {
  const [one, other] = [saved, asked].map((names) => names.toSorted().join(", "));
  if (one !== other)
    refuse("invalid-argument", `containers [${one}] were saved, and [${other}] are to be restored`);
};
