import { create } from "@bufbuild/protobuf";
import { VersionResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import type { Runtime, RuntimeMethods } from "../runtime.ts";

/** Version: kubelet refuses an answer with an empty field. */
export const version =
  (runtime: Pick<Runtime, "version">): RuntimeMethods["version"] =>
  async () =>
    create(VersionResponseSchema, {
      version: "0.1.0",
      runtimeName: "bulkhead",
      runtimeVersion: runtime.version,
      runtimeApiVersion: "v1",
    });
