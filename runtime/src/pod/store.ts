import { fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { HandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { PodSandboxConfigSchema } from "@bulkhead/lib/gen/cri_pb.js";
import * as z from "zod";
import { IndexById } from "../record/index-by-id.ts";
import { type Codec, Records } from "../record/records.ts";
import type { Held, Pod } from "./state.ts";

/** The Kubernetes identity of one attempt at a pod; only one sandbox may have it. */
export const podName = ({ config }: Pick<Pod, "config">): string =>
  [
    config.metadata?.name ?? "",
    config.metadata?.namespace ?? "",
    config.metadata?.uid ?? "",
    config.metadata?.attempt ?? 0,
  ].join("_");

const Record = z.object({
  version: z.literal(1),
  id: z.string(),
  createdAt: z.string(),
  config: z.unknown(),
  runtimeHandler: z.string(),
  handler: HandlerConfig,
  hostname: z.string(),
  selinuxLevel: z.string().optional(),
  state: z.enum(["creating", "ready", "lost", "stopping", "stopped"]),
  reason: z.string().optional(),
  held: z.record(z.string(), z.unknown()),
});

export const podCodec: Codec<Pod> = {
  encode: ({ createdAt, config, ...rest }) => ({
    version: 1,
    ...rest,
    createdAt: String(createdAt),
    config: toJson(PodSandboxConfigSchema, config),
  }),
  decode: (json) => {
    const { version: _, ...record } = Record.parse(json);
    const identity = {
      id: record.id,
      createdAt: BigInt(record.createdAt),
      config: fromJson(PodSandboxConfigSchema, record.config as JsonValue, { ignoreUnknownFields: true }),
      runtimeHandler: record.runtimeHandler,
      handler: record.handler,
      hostname: record.hostname,
      ...(record.selinuxLevel === undefined ? {} : { selinuxLevel: record.selinuxLevel }),
    };
    const held = record.held as Held;
    switch (record.state) {
      case "lost":
        return { ...identity, state: "lost", held, reason: record.reason ?? "" };
      case "stopped":
        return { ...identity, state: "stopped", held: held.sandbox ? { sandbox: held.sandbox } : {} };
      default:
        return { ...identity, state: record.state, held };
    }
  },
};

export type PodStore = IndexById<Pod>;

export const openPods = (dir: string): PodStore =>
  new IndexById("pod sandbox", new Records(dir, podCodec), podName);
