import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  BootstrapParamsSchema,
  BootstrapResultSchema,
  LogLevel,
} from "@bulkhead/lib/gen/shim_bootstrap_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";

/**
 * What goes into a shim's `start` and what comes back (containerd, core/runtime/v2/README.md). Shims of
 * containerd 2.3 and later want BootstrapParams on stdin; older ones ignore stdin, or want it empty. Answers
 * come in three forms: the binary BootstrapResult, JSON, and (version 2 of old) the bare address.
 */
export type Bootstrap = { version: number; address: string; protocol: "ttrpc" };

export const bootstrapParams = (params: {
  id: string;
  namespace: string;
  ttrpcAddress: string;
  grpcAddress: string;
  socketDir: string;
}): Uint8Array =>
  toBinary(
    BootstrapParamsSchema,
    create(BootstrapParamsSchema, {
      instanceId: params.id,
      namespace: params.namespace,
      logLevel: LogLevel.INFO,
      containerdVersion: "2.4.0",
      containerdTtrpcAddress: params.ttrpcAddress,
      containerdGrpcAddress: params.grpcAddress,
      socketDir: params.socketDir,
    }),
  );

const JsonReply = z.object({
  version: z.int().min(2),
  address: z.string().min(1),
  protocol: z.string().default("ttrpc"),
});

export function parseBootstrap(output: Uint8Array): Bootstrap {
  const reply = binaryReply(output) ??
    jsonReply(output) ?? { version: 2, address: text(output), protocol: "ttrpc" };
  if (!/^(unix:\/\/)?\/./.test(reply.address))
    throw new RuntimeError(
      "internal",
      `The shim answered ${JSON.stringify(text(output).slice(0, 200))}, which is no address`,
    );
  if (reply.protocol !== "ttrpc")
    throw new RuntimeError("unimplemented", `The shim speaks ${reply.protocol}; only ttrpc is supported`);
  return { version: reply.version, address: reply.address, protocol: "ttrpc" };
}

const text = (output: Uint8Array) => Buffer.from(output).toString().trim();

type Reply = { version: number; address: string; protocol: string };

const binaryReply = (output: Uint8Array): Reply | undefined => {
  try {
    const { version, address, protocol } = fromBinary(BootstrapResultSchema, output);
    // Plain text can pass for protobuf with nothing but unknown fields.
    return version >= 2 && address !== "" ? { version, address, protocol: protocol || "ttrpc" } : undefined;
  } catch {
    return undefined;
  }
};

const jsonReply = (output: Uint8Array): Reply | undefined => {
  try {
    return JsonReply.parse(JSON.parse(text(output)));
  } catch {
    return undefined;
  }
};
