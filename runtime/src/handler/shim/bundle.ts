import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { create, fromJson, toBinary } from "@bufbuild/protobuf";
import { type Any, AnySchema } from "@bufbuild/protobuf/wkt";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import {
  type Options as RuncOptions,
  OptionsSchema as RuncOptionsSchema,
} from "@bulkhead/lib/gen/shim_runc_options_pb.js";
import { OptionsSchema } from "@bulkhead/lib/gen/shim_runtime_options_pb.js";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { parse as parseToml } from "smol-toml";
import { type Linux, MountFlags } from "../../linux/linux.ts";
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

/** What a shim mounts on the bundle's rootfs before it starts a container. */
export type RootfsMount = { type: string; source: string; options: string[] };

/**
 * The root file system as Kata takes it: a directory that it mounts in the bundle and shares with the guest, or a disk
 * that it plugs into the machine and never mounts on the node. A file becomes one by the option "loop".
 */
export const rootfsMounts = ({ rootfs, disk }: { rootfs: string; disk?: string }): RootfsMount[] =>
  disk === undefined
    ? [{ type: "bind", source: rootfs, options: ["rbind", "rw"] }]
    : [{ type: "ext4", source: disk, options: disk.startsWith("/dev/") ? ["rw"] : ["rw", "loop"] }];

/** The spec of a container whose root the shim mounts: in the bundle, as containerd says it. */
export const rooted = (spec: Spec): Spec => ({ ...spec, root: { ...spec.root, path: "rootfs" } });

/** Unmounts whatever is mounted on a directory, also several times. Succeeds when nothing is. */
export async function unmountAll(directory: string, linux: Pick<Linux, "umount">): Promise<void> {
  for (let mounts = 0; mounts < 8; mounts++)
    try {
      await linux.umount(directory, MountFlags.DETACH | MountFlags.NOFOLLOW);
    } catch (error) {
      if (["EINVAL", "ENOENT"].includes((error as NodeJS.ErrnoException).code ?? "")) return;
      throw error;
    }
}

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
  config: Pick<ShimHandlerConfig, "optionsTypeUrl" | "configPath" | "configInline">,
  systemdCgroup = false,
): Any | undefined {
  if (config.optionsTypeUrl === "" && config.configPath === undefined) return undefined;
  if (config.optionsTypeUrl === runcOptions)
    return create(AnySchema, {
      typeUrl: runcOptions,
      value: toBinary(RuncOptionsSchema, runcOptionsOf(config.configPath, systemdCgroup)),
    });
  return create(AnySchema, {
    typeUrl: runtimeOptions,
    value: toBinary(
      OptionsSchema,
      create(OptionsSchema, {
        typeUrl: config.optionsTypeUrl,
        configPath: config.configPath ?? "",
        ...(config.configInline && config.configPath ? { configBody: readFileSync(config.configPath) } : {}),
      }),
    ),
  });
}

/** runc's options by the names that containerd's own configuration has for them: BinaryName, Root, NoPivotRoot … */
const runcOptionsOf = (path: string | undefined, systemdCgroup: boolean): RuncOptions => {
  const said = path === undefined ? {} : parseToml(readFileSync(path, "utf8"));
  const named = Object.entries(said).map(([key, value]) => [
    key.charAt(0).toLowerCase() + key.slice(1),
    value,
  ]);
  try {
    return fromJson(RuncOptionsSchema, { systemdCgroup, ...Object.fromEntries(named) });
  } catch (error) {
    throw new RuntimeError("invalid-argument", `Cannot use the options in ${path}: ${messageOf(error)}`, {
      cause: error,
    });
  }
};

const json = (kind: "Process" | "LinuxResources", value: unknown): Any =>
  create(AnySchema, {
    typeUrl: `types.containerd.io/opencontainers/runtime-spec/1/${kind}`,
    value: Buffer.from(JSON.stringify(value)),
  });

export const processAny = (process: NonNullable<Spec["process"]>): Any => json("Process", process);
export const resourcesAny = (resources: Resources): Any => json("LinuxResources", resources);
