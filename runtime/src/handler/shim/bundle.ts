import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { create, toBinary } from "@bufbuild/protobuf";
import { type Any, AnySchema } from "@bufbuild/protobuf/wkt";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { OptionsSchema as RuncOptionsSchema } from "@bulkhead/lib/gen/shim_runc_options_pb.js";
import { OptionsSchema } from "@bulkhead/lib/gen/shim_runtime_options_pb.js";
import type { Resources, Spec } from "../../spec/oci.ts";

/**
 * The directory that a shim takes for one container. Its name is the id, and its parent holds nothing else:
 * runc's shim looks for the container that it shall delete at `../ID`.
 */
export const bundleOf = (stateDir: string, id: string): string => join(stateDir, id);

/**
 * The spec with the annotations that group containers into a sandbox. Without container-type gVisor's shim
 * hangs in Create, and Kata boots a VM per container.
 */
export const groupedSpec = (spec: Spec, type: "sandbox" | "container", sandboxId: string): Spec => ({
  ...spec,
  annotations: {
    ...spec.annotations,
    "io.kubernetes.cri.container-type": type,
    "io.kubernetes.cri.sandbox-id": sandboxId,
  },
});

/** Makes the bundle; returns its path. Idempotent. */
export function writeBundle(stateDir: string, id: string, spec: Spec): string {
  const bundle = bundleOf(stateDir, id);
  mkdirSync(join(bundle, "rootfs"), { recursive: true, mode: 0o711 });
  mkdirSync(join(bundle, "work"), { recursive: true, mode: 0o711 });
  writeFileSync(join(bundle, "config.json"), JSON.stringify(spec), { mode: 0o600 });
  return bundle;
}

const runcOptions = "containerd.runc.v1.Options";
const runtimeOptions = "runtimeoptions.v1.Options";

/** The options of Create: runc's shim has its own message, all others take a path and the type of what is in it. */
export function createOptions(
  config: Pick<ShimHandlerConfig, "optionsTypeUrl" | "configPath">,
): Any | undefined {
  if (config.optionsTypeUrl === "" && config.configPath === undefined) return undefined;
  if (config.optionsTypeUrl === runcOptions)
    return create(AnySchema, {
      typeUrl: runcOptions,
      value: toBinary(RuncOptionsSchema, create(RuncOptionsSchema)),
    });
  return create(AnySchema, {
    typeUrl: runtimeOptions,
    value: toBinary(
      OptionsSchema,
      create(OptionsSchema, { typeUrl: config.optionsTypeUrl, configPath: config.configPath ?? "" }),
    ),
  });
}

const json = (kind: "Process" | "LinuxResources", value: unknown): Any =>
  create(AnySchema, {
    typeUrl: `types.containerd.io/opencontainers/runtime-spec/1/${kind}`,
    value: Buffer.from(JSON.stringify(value)),
  });

export const processAny = (process: NonNullable<Spec["process"]>): Any => json("Process", process);
export const resourcesAny = (resources: Resources): Any => json("LinuxResources", resources);
