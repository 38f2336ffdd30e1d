import { join } from "node:path";
import type { HandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { type ShimSettings, shimBinary } from "@bulkhead/lib/api/shim.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as toml from "smol-toml";

/** What makes a profile of any shim (`handler.shim`) on a node. Pure. */

type ShimProfile = Pick<DesiredProfile, "name" | "revision" | "handler">;

/** Where a node's packages and people put programs. */
export const shimDirectories = [
  "/usr/local/sbin",
  "/usr/local/bin",
  "/usr/sbin",
  "/usr/bin",
  "/sbin",
  "/bin",
];

/** The binary's path below the bundle or an artifact. */
export const shimInBundle = (profile: Pick<DesiredProfile, "handler">): string =>
  `bin/${shimBinary(settingsOf(profile).runtimeType)}`;

/** Why the settings cannot be used, or undefined. `found`: where the binary stands. */
export function shimProblem(
  profile: Pick<DesiredProfile, "handler">,
  found: string | undefined,
): string | undefined {
  const { runtimeType, options } = settingsOf(profile);
  if (options?.config !== undefined) {
    try {
      if (options.format === "json") JSON.parse(options.config);
      else toml.parse(options.config);
    } catch (error) {
      return `handler.shim.options.config is no ${options.format}: ${messageOf(error)}`;
    }
  }
  if (found !== undefined) return undefined;
  return `${shimBinary(runtimeType)} is neither in this agent's image nor in ${shimDirectories.join(", ")} of the node`;
}

/** The shim's configuration, of this revision alone: a running pod's shim may read it again. */
export function shimFiles(
  profile: ShimProfile,
  binary: string,
): { options?: { path: string; text: string }; handler: HandlerConfig } {
  const { name, revision } = profile;
  const { runtimeType, wall, sandboxApi, options, allowedAnnotations, deadlines } = settingsOf(profile);
  const runc = shimBinary(runtimeType).startsWith("containerd-shim-runc-");
  const path = `/etc/bulkhead/shim/${name}.${revision}.${options?.format ?? "toml"}`;
  const text = options?.config;
  return {
    ...(text === undefined ? {} : { options: { path, text } }),
    handler: {
      kind: "shim",
      name,
      revision,
      binary,
      optionsTypeUrl:
        options?.typeUrl ?? (runc ? "containerd.runc.v1.Options" : text === undefined ? "" : runtimeType),
      ...(text === undefined ? {} : { configPath: path, configInline: true }),
      wall,
      ...(sandboxApi ? { sandboxApi } : {}),
      allowedAnnotations: allowedAnnotations ?? [],
      deadlines,
      env: {},
    },
  };
}

/** Where the profile's binary stands: in the bundle or artifact at `root`, else on the node. */
export const shimPath = (
  profile: Pick<DesiredProfile, "handler">,
  root: string,
  supplies: { brings(path: string): boolean; isProgram(path: string): boolean },
): string | undefined => {
  const inside = shimInBundle(profile);
  if (supplies.brings(inside)) return join(root, inside);
  const name = shimBinary(settingsOf(profile).runtimeType);
  return shimDirectories.map((directory) => join(directory, name)).find(supplies.isProgram);
};

const settingsOf = ({ handler }: Pick<DesiredProfile, "handler">): ShimSettings => {
  if (handler.shim === undefined)
    throw new RuntimeError("internal", "A profile of a shim has no shim settings");
  return handler.shim;
};
