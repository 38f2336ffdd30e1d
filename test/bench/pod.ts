import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import {
  ContainerConfigSchema,
  CreateContainerRequestSchema,
  PodSandboxConfigSchema,
  PullImageRequestSchema,
  RemovePodSandboxRequestSchema,
  RunPodSandboxRequestSchema,
  StartContainerRequestSchema,
  StopPodSandboxRequestSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import type { Engine } from "./engines.ts";

const deadline = () => AbortSignal.timeout(120_000);

export type Started = {
  pod: string;
  container: string;
  milliseconds: { sandbox: number; create: number; start: number };
};

/** A pod as kubelet makes it: own network, default security, one container that sleeps. */
export async function startPod(engine: Engine, image: string): Promise<Started> {
  const uid = randomUUID();
  const config = create(PodSandboxConfigSchema, {
    metadata: { name: `bench-${uid.slice(0, 8)}`, namespace: "bench", uid },
    hostname: "bench",
    logDirectory: `/tmp/bh-bench-logs/${uid}`,
    linux: { cgroupParent: `${engine.cpu.pods}/${uid}`, securityContext: { namespaceOptions: { pid: 1 } } },
  });
  const t0 = performance.now();
  const { podSandboxId: pod } = await engine.cri.runtime.runPodSandbox(
    create(RunPodSandboxRequestSchema, { config, runtimeHandler: engine.handler }),
    deadline(),
  );
  const t1 = performance.now();
  const { containerId: container } = await engine.cri.runtime.createContainer(
    create(CreateContainerRequestSchema, {
      podSandboxId: pod,
      sandboxConfig: config,
      config: create(ContainerConfigSchema, {
        metadata: { name: "main" },
        image: { image },
        command: ["sleep", "100000"],
        logPath: "main.log",
        linux: { securityContext: { namespaceOptions: { pid: 1 } } },
      }),
    }),
    deadline(),
  );
  const t2 = performance.now();
  await engine.cri.runtime.startContainer(
    create(StartContainerRequestSchema, { containerId: container }),
    deadline(),
  );
  const t3 = performance.now();
  return { pod, container, milliseconds: { sandbox: t1 - t0, create: t2 - t1, start: t3 - t2 } };
}

export const endPod = (engine: Engine, pod: string): Promise<void> => removePod(engine.cri, pod);

export async function removePod(cri: Engine["cri"], pod: string): Promise<void> {
  await cri.runtime.stopPodSandbox(create(StopPodSandboxRequestSchema, { podSandboxId: pod }), deadline());
  await cri.runtime.removePodSandbox(
    create(RemovePodSandboxRequestSchema, { podSandboxId: pod }),
    deadline(),
  );
}

/** Returns the image's id, which containers name. */
export const pull = async (engine: Engine, image: string): Promise<string> =>
  (await engine.cri.image.pullImage(create(PullImageRequestSchema, { image: { image } }), deadline()))
    .imageRef;
