import { randomBytes, randomInt } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { hostname as nodeName } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { type PodSandboxConfig, RunPodSandboxResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { LoadedHandler } from "../../handlers/handlers.ts";
import { timed } from "../../metrics.ts";
import { createOwnedNamespaces } from "../../network/user-namespace.ts";
import { chooseEmptyDirs } from "../../pod/empty-dirs.ts";
import { giveTo, mountShm, podFiles, writePodFiles } from "../../pod/files.ts";
import { hold, lost, newPod, type Pod, ready } from "../../pod/state.ts";
import { podName } from "../../pod/store.ts";
import { requireAllowed } from "../../spec/annotations.ts";
import { holderProgram } from "../../spec/holder-program.ts";
import { holderPath, holderSpec } from "../../spec/holder-spec.ts";
import { podNamespaces } from "../../spec/namespaces.ts";
import { freeLevel } from "../../spec/selinux.ts";
import { sysctlsOf } from "../../spec/sysctl.ts";
import { podIdsOf } from "../../spec/user-namespace.ts";
import { restoreAnnotation } from "../container/restore.ts";
import { holderDiskMiB, makeDisk } from "../disk.ts";
import { notify } from "../notify.ts";
import { cleanup, now, podDir, type Runtime, type RuntimeMethods } from "../runtime.ts";
import { networkPod, requireNetworkPod } from "./network-pod.ts";
import { releasePod, removePod } from "./release.ts";

/**
 * RunPodSandbox. The record comes first, then namespaces, then network and files side by side, then whatever the
 * handler needs. A retry while it is under way joins it; when the last caller gives up it is rolled back.
 */
export const runPodSandbox =
  (runtime: Runtime): RuntimeMethods["runPodSandbox"] =>
  async (request, signal) => {
    const plan = planPod(runtime, request.config, request.runtimeHandler);
    const podSandboxId = await runtime.starting.run(
      `pod ${podName(plan)}`,
      (both) => runPod(runtime, plan, both),
      signal,
    );
    return create(RunPodSandboxResponseSchema, { podSandboxId });
  };

type PodPlan = {
  config: PodSandboxConfig;
  runtimeHandler: string;
  loaded: LoadedHandler;
  /** Nothing is to run in it before its first container does. */
  awaitsRestore: boolean;
};

/** Checks what is asked for; throws in words. */
export const planPod = (
  runtime: Runtime,
  asked: PodSandboxConfig | undefined,
  runtimeHandler: string,
): PodPlan => {
  const config = checked(asked);
  const loaded = runtime.handlers.resolve(runtimeHandler);
  if (podIdsOf(config) !== undefined) requireUserNamespaces(runtime, loaded);
  requireAllowed(loaded.config, config.annotations);
  const awaitsRestore =
    loaded.handler.stageRestore !== undefined && config.annotations[restoreAnnotation] === "true";
  return { config, runtimeHandler, loaded, awaitsRestore };
};

const requireUserNamespaces = (runtime: Runtime, { config, handler }: LoadedHandler): void => {
  const why = handler.features().userNamespaces
    ? runtime.noUserNamespaces
    : `handler "${config.name}" has none`;
  if (why !== undefined)
    throw new RuntimeError("failed-precondition", `Cannot run the pod in a user namespace: ${why}`);
};

const checked = (config: PodSandboxConfig | undefined): PodSandboxConfig => {
  if (!config?.metadata?.name || !config.metadata.uid)
    throw new RuntimeError("invalid-argument", "Cannot run a pod sandbox without a name and a uid");
  podIdsOf(config);
  requireNetworkPod(config);
  const own = podNamespaces(config);
  sysctlsOf(config.linux?.sysctls ?? {}, { net: own.net === "pod", ipc: own.ipc === "pod" });
  if (config.hostname.length > 64 || /[^A-Za-z0-9._-]/.test(config.hostname))
    throw new RuntimeError("invalid-argument", `Cannot use "${config.hostname}" as a host name`);
  return config;
};

/** Makes the pod; it is ready, or gone. */
export const runPod = async (runtime: Runtime, plan: PodPlan, signal: AbortSignal): Promise<string> => {
  const { config, runtimeHandler, loaded } = plan;
  const from = performance.now();
  const id = randomBytes(32).toString("hex");
  const own = podNamespaces(config);
  const hostname = own.uts === "host" ? nodeName() : config.hostname || nodeName();
  runtime.pods.add(
    newPod({
      ...{ id, createdAt: now(), config, runtimeHandler, handler: loaded.config, hostname },
      ...(runtime.host.selinux === undefined ? {} : { selinuxLevel: levelOf(runtime, config) }),
    }),
  );
  try {
    await build(runtime, id, plan, signal);
    runtime.pods.update(id, ready);
  } catch (error) {
    await rollBack(runtime, id, error);
    throw error;
  }
  notify(runtime, "created", id, id);
  notify(runtime, "started", id, id);
  runtime.metrics.startSeconds.observe(
    { handler: loaded.config.name, phase: "run" },
    (performance.now() - from) / 1000,
  );
  return id;
};

/** As the pod asks, or one of its own, which is its own until the record is gone. */
const levelOf = ({ pods }: Pick<Runtime, "pods">, config: PodSandboxConfig): string =>
  config.linux?.securityContext?.selinuxOptions?.level ||
  freeLevel(new Set(pods.list().map(({ selinuxLevel }) => selinuxLevel ?? "")), randomInt);

/** What cannot be given back now stays as a pod that is not ready, for kubelet to stop and remove. */
const rollBack = async (runtime: Runtime, id: string, cause: unknown): Promise<void> => {
  try {
    await releasePod(runtime, id, cleanup());
    const pod = runtime.pods.get(id);
    if (pod) await removePod(runtime, pod, cleanup());
  } catch (error) {
    runtime.log.warn({ pod: id, err: error }, "pod sandbox could not be rolled back");
    runtime.pods.learn(id, (pod) => lost(pod, messageOf(cause)));
  }
};

const build = async (
  runtime: Runtime,
  id: string,
  { loaded: { config: handlerConfig, handler }, awaitsRestore }: PodPlan,
  signal: AbortSignal,
): Promise<void> => {
  const { network, pods, linux, metrics } = runtime;
  const name = handlerConfig.name;
  const update = (change: (pod: Pod) => Pod): Pod => {
    const pod = pods.update(id, change);
    if (!pod) throw new RuntimeError("not-found", `Pod sandbox "${id}" is gone`);
    return pod;
  };
  const { config, hostname } = pods.require(id);
  const own = podNamespaces(config);
  const ids = podIdsOf(config);
  const dir = podDir(runtime, id);
  const files = podFiles(dir, own.ipc);
  const sandboxDir = join(dir, "sandbox");
  await mkdir(join(dir, "namespaces"), { recursive: true, mode: 0o700 });

  update((pod) => hold(pod, { namespaces: {} }));
  const which = (["net", "ipc", "uts"] as const).filter((each) => own[each] === "pod");
  const namespaces = await timed(metrics, name, "namespaces", () =>
    ids === undefined
      ? network.createNamespaces(join(dir, "namespaces"), which, hostname)
      : createOwnedNamespaces(
          join(dir, "namespaces"),
          which,
          hostname,
          ids,
          { program: runtime.reaper, linux },
          signal,
        ),
  );
  update((pod) => hold(pod, { namespaces }));

  const attach = async (): Promise<void> => {
    if (own.net === "host") return;
    const pod = update((each) => hold(each, { network: {} }));
    const result = await timed(metrics, name, "network", () =>
      network.attach(networkPod(runtime, pod), signal),
    );
    update((each) => hold(each, { network: { result } }));
  };
  const prepare = async (): Promise<void> => {
    await Promise.all([mkdir(sandboxDir, { mode: 0o700 }), writePodFiles(files, hostname, config.dnsConfig)]);
    if (ids) await giveTo(ids, dir, files);
    if (own.ipc === "host") return;
    update((each) => hold(each, { shm: true }));
    await mountShm(files.shm, linux);
  };
  // Both must have ended before anything is undone.
  const results = await Promise.allSettled([attach(), prepare()]);
  for (const result of results) if (result.status === "rejected") throw result.reason;
  signal.throwIfAborted();

  const rootfs = handler.kind === "shim" ? await holderRoot(dir, runtime.host.arch) : "";
  const inSandbox = handlerConfig.kind === "shim" && handlerConfig.runsc?.emptyDir === "sandbox";
  const spec = holderSpec({
    id,
    ...(inSandbox && { hints: await chooseEmptyDirs(dir, config.metadata?.uid ?? "") }),
    config,
    namespaces,
    hostname,
    files,
    rootfs,
    pid: own.pid === "host" ? "host" : "own",
    process: handler.kind === "shim" || own.pid === "pod",
    allowedAnnotations: handlerConfig.allowedAnnotations,
    kata: handlerConfig.kind === "shim" ? handlerConfig.kata : undefined,
    host: runtime.host,
  });
  const disk =
    rootfs === ""
      ? undefined
      : await makeDisk(
          runtime,
          handlerConfig,
          { key: id, directory: rootfs, sizeMiB: holderDiskMiB },
          signal,
        );
  update((each) => hold(each, { sandbox: { state: {} } }));
  const state = await timed(metrics, name, "sandbox", () =>
    handler.runSandbox(
      {
        id,
        stateDir: sandboxDir,
        namespaces,
        hostname,
        spec,
        rootfs,
        ...(disk === undefined ? {} : { disk }),
        logDirectory: config.logDirectory,
        annotations: spec.annotations ?? {},
        config,
        awaitsRestore,
      },
      AbortSignal.any([signal, AbortSignal.timeout(handlerConfig.deadlines.create * 1000)]),
    ),
  );
  update((each) => hold(each, { sandbox: { state } }));
  signal.throwIfAborted();
};

/** A root file system with the holder's program and nothing else. */
const holderRoot = async (dir: string, arch: string): Promise<string> => {
  const rootfs = join(dir, "rootfs");
  await mkdir(rootfs, { mode: 0o755 });
  await writeFile(join(rootfs, holderPath), holderProgram(arch), { mode: 0o555 });
  return rootfs;
};
