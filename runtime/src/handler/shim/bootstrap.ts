import { create, createRegistry, fromBinary, toBinary, toJsonString } from "@bufbuild/protobuf";
import { type Any, AnySchema } from "@bufbuild/protobuf/wkt";
import {
  type BootstrapParams,
  BootstrapParamsSchema,
  BootstrapResultSchema,
  LogLevel,
} from "@bulkhead/lib/gen/shim_bootstrap_pb.js";
import { OptionsSchema as RuncOptionsSchema } from "@bulkhead/lib/gen/shim_runc_options_pb.js";
import { OptionsSchema } from "@bulkhead/lib/gen/shim_runtime_options_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";

/**
 * What goes into a shim's `start` on stdin and what comes back (containerd, core/runtime/v2/README.md and
 * api/runtime/bootstrap/v1). Answers come in three forms: the binary BootstrapResult, JSON, and (version 2 of old)
 * the bare address.
 */
export type Bootstrap = { version: number; address: string; protocol: "ttrpc" | "grpc" };

/**
 * The forms of stdin, newest first. Shims of containerd 2.3 and later want BootstrapParams, in binary although the
 * message's description speaks of JSON; those before take the runtime's options, or nothing, and fail on what they
 * do not know.
 */
const forms = ["bootstrap", "options", "empty", "bootstrap-json"] as const;
export type LaunchForm = (typeof forms)[number];

/** In which order to offer them: the one that was taken last, then the others. */
export const launchForms = (known: LaunchForm | undefined, hasOptions: boolean): LaunchForm[] => [
  ...new Set([
    ...(known === undefined ? [] : [known]),
    ...forms.filter((form) => form !== "options" || hasOptions),
  ]),
];

export type LaunchParams = {
  id: string;
  namespace: string;
  ttrpcAddress: string;
  grpcAddress: string;
  /** Program that publishes events. */
  publisher: string;
  socketDir: string;
  /** The runtime's options, as in Create. */
  options: Any | undefined;
};

/** What is written to the stdin of `start`; undefined: nothing. */
export function bootstrapInput(form: LaunchForm, params: LaunchParams): Uint8Array | undefined {
  switch (form) {
    case "bootstrap":
      return toBinary(BootstrapParamsSchema, bootstrapParams(params));
    case "bootstrap-json":
      return Buffer.from(toJsonString(BootstrapParamsSchema, bootstrapParams(params), { registry }));
    case "options":
      return params.options && toBinary(AnySchema, params.options);
    case "empty":
      return undefined;
  }
}

/** The kinds of options that we send: JSON writes out what is in an Any. */
const registry = createRegistry(RuncOptionsSchema, OptionsSchema);

const bootstrapParams = (params: LaunchParams): BootstrapParams =>
  create(BootstrapParamsSchema, {
    instanceId: params.id,
    namespace: params.namespace,
    logLevel: LogLevel.INFO,
    containerdVersion: "2.4.0",
    containerdTtrpcAddress: params.ttrpcAddress,
    containerdGrpcAddress: params.grpcAddress,
    containerdBinary: params.publisher,
    extensions: params.options ? [{ value: params.options }] : [],
    socketDir: params.socketDir,
  });

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
  const { version, address, protocol } = reply;
  if (protocol !== "ttrpc" && protocol !== "grpc")
    throw new RuntimeError(
      "unimplemented",
      `The shim speaks ${JSON.stringify(protocol.slice(0, 64))}; only ttrpc and grpc are supported`,
    );
  return { version, address, protocol };
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
