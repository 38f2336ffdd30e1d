import { join } from "node:path";
import { vmSettings } from "@bulkhead/lib/api/kata.ts";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { handlerKind } from "@bulkhead/lib/api/runtime-profile.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as toml from "smol-toml";
import {
  artifactDirectory,
  kataRoot,
  type NodeOfProfile,
  programRoot,
  versionDirectory,
} from "../installer/files.ts";
import { type Platform, runscFlags, tenantAnnotations } from "../installer/gvisor.ts";
import { vmFiles } from "../installer/kata/profile.ts";
import { shimFiles } from "../installer/shim.ts";
import { type EngineHandler, header } from "./engine.ts";

/**
 * What makes a profile's handler on the node's own engine: files of ours, and what the engine is told. Each file is one
 * for all revisions: pods that run name it, and the engine is not restarted for what changes in it. Pure.
 */
export type NodeHandler = { files: Record<string, string>; handler: EngineHandler };

/** Where gVisor's overlays are with `overlay: directory`: beside what is our own runtime's, which may go before. */
const overlays = `${paths.root}-overlays`;

/** The handler of a profile, whichever engine is told of it. */
export function nodeHandler(
  profile: DesiredProfile,
  version: string,
  platform: Platform,
  node: NodeOfProfile,
): NodeHandler {
  const { name, handler } = profile;
  const kind = handlerKind(profile);
  const bin = (program: string): string => join(programRoot(profile, version), "bin", program);
  switch (kind) {
    case "runc":
    case "crun": {
      const args = handler[kind]?.flags ?? [];
      return { files: {}, handler: { name, kind, program: bin(kind), args, annotations: [] } };
    }
    case "gvisor": {
      const { gvisor } = handler;
      if (gvisor === undefined)
        throw new RuntimeError("internal", "A profile of gVisor has no gvisor settings");
      const flags = runscFlags(gvisor, platform, overlays);
      const config = join("/etc/bulkhead/runsc", `${name}.toml`);
      return {
        // No root: the shim takes the engine's own, which the engine's tools know too.
        files: { [config]: header + toml.stringify({ binary_name: bin("runsc"), runsc_config: flags }) },
        handler: {
          name,
          kind,
          program: bin("runsc"),
          shim: bin("containerd-shim-runsc-v1"),
          alias: aliasOf(profile, version, "runsc"),
          config,
          annotations: tenantAnnotations(gvisor),
          args: Object.entries(flags).map(([flag, value]) => `--${flag}=${value}`),
          ...(gvisor.overlay === "directory" ? { directory: overlays } : {}),
        },
      };
    }
    case "kata":
    case "firecracker": {
      const made = vmFiles(profile, kataRoot(profile, version), node);
      const { binary, allowedAnnotations } = shimOf(made.handler);
      const config = join("/etc/bulkhead/kata", `${name}.toml`);
      return {
        files: { [config]: header + made.configuration.text },
        handler: {
          name,
          kind: "vm",
          program: binary,
          config,
          args: [],
          annotations: allowedAnnotations,
          ...(vmSettings(handler)?.rootfs === "block" ? { disks: true } : {}),
        },
      };
    }
    case "shim": {
      const made = shimFiles(profile, node.shim ?? "");
      const { binary, allowedAnnotations, optionsTypeUrl, sandboxApi } = shimOf(made.handler);
      const config = join("/etc/bulkhead/shim", `${name}.${handler.shim?.options?.format ?? "toml"}`);
      const [short = ""] = /[^.]+(?=\.[^.]+$)/.exec(handler.shim?.runtimeType ?? "") ?? [];
      return {
        files: made.options === undefined ? {} : { [config]: made.options.text },
        handler: {
          name,
          kind,
          program: binary,
          runtimeType: handler.shim?.runtimeType,
          args: [],
          annotations: allowedAnnotations,
          ...(made.options === undefined ? {} : { config, optionsType: optionsTypeUrl }),
          ...(sandboxApi === true ? { sandboxApi } : {}),
          ...(/-v2$/.test(binary) ? {} : { alias: aliasOf(profile, version, short) }),
        },
      };
    }
  }
}

/** CRI-O takes shims for its runtime_type vm by their name, which has to end in -v2. In a tree that goes as a whole. */
const aliasOf = ({ artifact }: DesiredProfile, version: string, name: string): string => {
  const tree = artifact.image === undefined ? versionDirectory(version) : artifactDirectory(artifact.image);
  return join(tree, "crio", `containerd-shim-${name}-v2`);
};

const shimOf = (handler: ReturnType<typeof vmFiles>["handler"]) => {
  if (handler.kind !== "shim") throw new RuntimeError("internal", `Handler "${handler.name}" is no shim`);
  return handler;
};
