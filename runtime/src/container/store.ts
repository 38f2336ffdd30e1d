import { fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { ContainerConfigSchema } from "@bulkhead/lib/gen/cri_pb.js";
import * as z from "zod";
import { IndexById } from "../record/index-by-id.ts";
import { type Codec, Records } from "../record/records.ts";
import type { Process, Resources } from "../spec/oci.ts";
import type { Container } from "./state.ts";

/** One attempt at a container of a pod sandbox; only one container may have it. */
export const containerName = ({ config, podId }: Pick<Container, "config" | "podId">): string =>
  [config.metadata?.name ?? "", config.metadata?.attempt ?? 0, podId].join("_");

const identity = {
  version: z.literal(1),
  id: z.string(),
  podId: z.string(),
  createdAt: z.string(),
  config: z.unknown(),
  imageId: z.string(),
  logPath: z.string(),
  stopSignal: z.int(),
};

const made = {
  handlerState: z.record(z.string(), z.unknown()),
  user: z.object({ uid: z.int(), gid: z.int(), groups: z.array(z.int()) }),
  process: z.custom<Process>((value) => typeof value === "object" && value !== null),
  imageMounts: z.array(z.string()),
  resources: z.custom<Resources>((value) => typeof value === "object" && value !== null),
};

const Record = z.discriminatedUnion("state", [
  z.object({ ...identity, state: z.literal("creating") }),
  z.object({ ...identity, ...made, state: z.literal("created") }),
  z.object({ ...identity, ...made, state: z.literal("running"), startedAt: z.string() }),
  z.object({
    ...identity,
    ...made,
    state: z.literal("exited"),
    startedAt: z.string(),
    finishedAt: z.string(),
    exitCode: z.int(),
    reason: z.enum(["Completed", "Error", "OOMKilled", "StartError", "Unknown"]),
    message: z.string(),
  }),
]);

export const containerCodec: Codec<Container> = {
  encode: ({ config, ...rest }) => ({
    version: 1,
    ...Object.fromEntries(
      Object.entries(rest).map(([key, value]) => [key, typeof value === "bigint" ? String(value) : value]),
    ),
    config: toJson(ContainerConfigSchema, config),
  }),
  decode: (json) => {
    const { version: _, ...record } = Record.parse(json);
    const decoded = {
      createdAt: BigInt(record.createdAt),
      config: fromJson(ContainerConfigSchema, record.config as JsonValue, { ignoreUnknownFields: true }),
    };
    switch (record.state) {
      case "creating":
      case "created":
        return { ...record, ...decoded };
      case "running":
        return { ...record, ...decoded, startedAt: BigInt(record.startedAt) };
      case "exited":
        return {
          ...record,
          ...decoded,
          startedAt: BigInt(record.startedAt),
          finishedAt: BigInt(record.finishedAt),
        };
    }
  },
};

export type ContainerStore = IndexById<Container>;

export const openContainers = (dir: string): ContainerStore =>
  new IndexById("container", new Records(dir, containerCodec), containerName);
