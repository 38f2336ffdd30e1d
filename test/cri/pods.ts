import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, fromJson, type JsonValue } from "@bufbuild/protobuf";
import { connectCri } from "@bulkhead/lib/cri/client.ts";
import {
  type ContainerConfig,
  ContainerConfigSchema,
  CreateContainerRequestSchema,
  ExecSyncRequestSchema,
  type PodSandboxConfig,
  PodSandboxConfigSchema,
  RemovePodSandboxRequestSchema,
  RunPodSandboxRequestSchema,
  StartContainerRequestSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { ensureTestImages } from "../images/build.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { inCache } from "../tools/cache.ts";
import { createDaemon, type Daemon } from "./daemon.ts";

/** The image that it has. */
export const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

/** Messages are in CRI's own JSON. */
export type Fields = Record<string, unknown>;
export type Pod = { id: string; config: PodSandboxConfig };

export type Opened = {
  /** A directory of the test's own; logs of pods are below it. */
  scratch: string;
  registry: RunningRegistry;
  daemon: Daemon;
  call: ReturnType<typeof connectCri>["runtime"];
};

/** A container that runs a script in a shell. */
export const containerConfig = (
  name: string,
  script: string,
  image = busybox,
  fields: Fields = {},
): ContainerConfig =>
  fromJson(ContainerConfigSchema, {
    metadata: { name, attempt: 0 },
    image: { image },
    command: ["sh", "-c", script],
    log_path: `${name}.log`,
    ...fields,
  } as JsonValue);

/**
 * A daemon with an image, and pods by its CRI. `handler` runs them where a test names none; "": the daemon's own choice.
 * `deadlineMs` is how long a call may take that makes or starts something.
 */
export const criPods = (options: {
  name: string;
  subnet: number;
  handler?: string;
  deadlineMs?: number;
  under?: () => readonly string[];
  /** Before the daemon starts. */
  prepare?: (daemon: Daemon) => Promise<void>;
}) => {
  const { name, subnet, handler = "", deadlineMs = 60_000, prepare } = options;
  const undo = new AsyncDisposableStack();
  let opened: Opened;
  let serial = 0;
  const soon = (): AbortSignal => AbortSignal.timeout(deadlineMs);

  const open = async (): Promise<Opened> => {
    const scratch = await mkdtemp(join(tmpdir(), `bh-${name}-`));
    undo.defer(() => rm(scratch, { recursive: true, force: true }));
    const registry = await startRegistry({ dir: inCache("cri-registry") });
    undo.defer(() => registry.stop());
    await ensureTestImages(registry.host, ["e2e-test-images/busybox:1.29-2"]);
    const under = options.under?.();
    const daemon = undo.use(await createDaemon({ registry: registry.host, subnet, ...(under && { under }) }));
    await prepare?.(daemon);
    await daemon.start();
    const { runtime: call } = undo.use(connectCri(daemon.socket));
    opened = { scratch, registry, daemon, call };
    await daemon.crictl("pull", busybox);
    return opened;
  };

  const podConfig = (fields: Fields = {}): PodSandboxConfig => {
    const pod = `pod-${++serial}`;
    return fromJson(PodSandboxConfigSchema, {
      metadata: { name: pod, namespace: "test", uid: pod, attempt: 0 },
      log_directory: join(opened.scratch, pod),
      linux: { security_context: { namespace_options: { pid: 1 } } },
      ...fields,
    } as JsonValue);
  };
  const runPod = async (fields: Fields = {}, runtimeHandler = handler): Promise<Pod> => {
    const config = podConfig(fields);
    const request = create(RunPodSandboxRequestSchema, { config, runtimeHandler });
    return { id: (await opened.call.runPodSandbox(request, soon())).podSandboxId, config };
  };
  const createIn = async (pod: Pod, config: ContainerConfig): Promise<string> => {
    const request = create(CreateContainerRequestSchema, {
      podSandboxId: pod.id,
      config,
      sandboxConfig: pod.config,
    });
    return (await opened.call.createContainer(request, soon())).containerId;
  };
  const start = async (containerId: string): Promise<void> => {
    await opened.call.startContainer(create(StartContainerRequestSchema, { containerId }), soon());
  };
  const startIn = async (pod: Pod, config: ContainerConfig): Promise<string> => {
    const id = await createIn(pod, config);
    await start(id);
    return id;
  };
  const removePod = async (podSandboxId: string): Promise<void> => {
    const request = create(RemovePodSandboxRequestSchema, { podSandboxId });
    await opened.call.removePodSandbox(request, AbortSignal.timeout(60_000));
  };
  /** What a command in the container says on its standard output. */
  const execute = async (containerId: string, script: string): Promise<string> => {
    const request = create(ExecSyncRequestSchema, { containerId, cmd: ["sh", "-c", script], timeout: 30n });
    const { stdout } = await opened.call.execSync(request, AbortSignal.timeout(40_000));
    return Buffer.from(stdout).toString();
  };
  return {
    ...{ open, close: () => undo.disposeAsync(), podConfig, runPod, createIn, start, startIn, removePod },
    execute,
  };
};
