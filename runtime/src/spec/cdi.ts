import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";
import type { HostDevice } from "./container-spec.ts";
import type { Mount, Spec } from "./oci.ts";

const absolute = z.string().regex(/^\/[^\0]*$/, "must be an absolute path");
const variable = z.string().regex(/^[^=\0]+=[^\0]*$/, "must be NAME=VALUE");
const text = z.string().regex(/^[^\0]*$/, "must not hold a NUL");

const Hook = z.object({
  hookName: z.enum([
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
  ]),
  path: absolute,
  args: z.array(text).max(256).optional(),
  env: z.array(variable).max(256).optional(),
  timeout: z.int().min(1).optional(),
});

const DeviceNode = z.object({
  path: absolute,
  hostPath: absolute.optional(),
  type: z.enum(["b", "c", "u", "p"]).optional(),
  major: z.int().min(0).optional(),
  minor: z.int().min(0).optional(),
  fileMode: z.int().min(0).max(0o7777).optional(),
  permissions: z
    .string()
    .regex(/^[rwm]{0,3}$/, "must be some of rwm")
    .optional(),
  uid: z.int().min(0).optional(),
  gid: z.int().min(0).optional(),
});

const ContainerEdits = z.object({
  env: z.array(variable).max(1024).optional(),
  deviceNodes: z.array(DeviceNode).max(1024).optional(),
  mounts: z
    .array(
      z.object({
        hostPath: absolute,
        containerPath: absolute,
        type: text.optional(),
        options: z.array(text).max(64).optional(),
      }),
    )
    .max(1024)
    .optional(),
  hooks: z.array(Hook).max(64).optional(),
  additionalGids: z.array(z.int().min(0)).max(1024).optional(),
});

const deviceName = /^[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?$/;

/** A file of the Container Device Interface (its SPEC.md, versions 0.3 to 1.0), as far as we act on it. */
export const CdiSpec = z.object({
  cdiVersion: z.string().regex(/^(v?0\.[3-9]\.\d+|v?1\.\d+\.\d+)$/, "is no version from 0.3.0 to 1.x"),
  kind: z
    .string()
    .max(256)
    .regex(
      /^[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?\/[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?$/,
      "must be VENDOR/CLASS",
    ),
  devices: z
    .array(
      z.object({
        name: z.string().max(256).regex(deviceName, "is no device name"),
        containerEdits: ContainerEdits,
      }),
    )
    .min(1)
    .max(4096),
  containerEdits: ContainerEdits.optional(),
});
export type CdiSpec = z.infer<typeof CdiSpec>;
export type CdiEdits = z.infer<typeof ContainerEdits>;

/** A file that was read; files of a directory with a higher `priority` hide devices of the others. */
export type CdiFile = { path: string; priority: number; spec: CdiSpec };

/** What a container's devices add to it, file by file and device by device, in the order that they were asked for. */
export const cdiEdits = (
  names: readonly string[],
  files: readonly CdiFile[],
  /** Files that could not be used, for the message when a device is missing. */
  unusable: readonly string[],
): CdiEdits[] => {
  const used = new Set<CdiFile>();
  const wanted = new Set(names);
  return [...wanted].flatMap((name) => {
    const [, kind, device] = /^([^=]+\/[^=/]+)=(.+)$/.exec(name) ?? [];
    if (kind === undefined || device === undefined || !deviceName.test(device))
      throw new RuntimeError(
        "invalid-argument",
        `Cannot add CDI device "${name}": it must be VENDOR/CLASS=NAME`,
      );
    const having = files.filter(
      ({ spec }) => spec.kind === kind && spec.devices.some((each) => each.name === device),
    );
    const highest = Math.max(...having.map(({ priority }) => priority));
    const [file, other] = having.filter(({ priority }) => priority === highest);
    if (other !== undefined)
      throw new RuntimeError(
        "failed-precondition",
        `Cannot add CDI device "${name}": ${file?.path} and ${other.path} both define it`,
      );
    const found = file?.spec.devices.filter((each) => each.name === device) ?? [];
    const [first] = found;
    if (file === undefined || first === undefined)
      throw new RuntimeError(
        "not-found",
        `Cannot add CDI device "${name}": no CDI file of this node defines it${
          unusable.length > 0 ? `; not usable: ${unusable.join("; ")}` : ""
        }`,
      );
    if (found.length > 1)
      throw new RuntimeError(
        "failed-precondition",
        `Cannot add CDI device "${name}": ${file.path} defines it ${found.length} times`,
      );
    const common = used.has(file) ? [] : [file.spec.containerEdits ?? {}];
    used.add(file);
    return [...common, first.containerEdits];
  });
};

/** Edits whose device nodes were looked up on the node. */
export type ResolvedEdits = Omit<CdiEdits, "deviceNodes"> & { devices: readonly HostDevice[] };

const nameOf = (entry: string): string => entry.slice(0, entry.indexOf("="));

const bindOptions = (options: readonly string[]): string[] =>
  options.includes("bind") || options.includes("rbind") ? [...options] : ["rbind", ...options];

const depth = (path: string): number => path.split("/").filter((part) => part !== "").length;

/**
 * A specification with the edits made: of one name, path or destination the last one counts. Pure; privileged
 * containers have access to all devices already.
 */
export const withEdits = (spec: Spec, edits: readonly ResolvedEdits[], privileged: boolean): Spec => {
  if (edits.length === 0) return spec;
  const env = edits.flatMap((each) => each.env ?? []);
  const devices = edits.flatMap((each) => each.devices);
  const added = edits.flatMap((each) => each.mounts ?? []);
  const hooks = edits.flatMap((each) => each.hooks ?? []);
  // Group 0 would be root's: CDI says to leave it out.
  const gids = edits.flatMap((each) => each.additionalGids ?? []).filter((gid) => gid !== 0);
  const mounts: Mount[] = added.map(({ hostPath, containerPath, type, options }) =>
    type === undefined || type === "" || type === "bind"
      ? { destination: containerPath, source: hostPath, type: "bind", options: bindOptions(options ?? []) }
      : { destination: containerPath, source: hostPath, type, options: options ?? [] },
  );
  const process = spec.process && {
    ...spec.process,
    env: [...new Map([...spec.process.env, ...env].map((entry) => [nameOf(entry), entry] as const)).values()],
    user: {
      ...spec.process.user,
      additionalGids: [...new Set([...(spec.process.user.additionalGids ?? []), ...gids])].sort(
        (a, b) => a - b,
      ),
    },
  };
  const paths = new Set(devices.map(({ path }) => path));
  const linux = spec.linux && {
    ...spec.linux,
    devices: [
      ...(spec.linux.devices ?? []).filter(({ path }) => !paths.has(path)),
      ...devices.map(({ path, type, major, minor, mode, uid, gid }) => ({
        ...{ type, path, major, minor, fileMode: mode, uid, gid },
      })),
    ],
    resources: {
      ...spec.linux.resources,
      devices: [
        ...(spec.linux.resources?.devices ?? []),
        ...(privileged
          ? []
          : devices.map(({ type, major, minor, permissions }) => ({
              ...{ allow: true, type, major, minor, access: permissions },
            }))),
      ],
    },
  };
  const kept = spec.mounts.filter(
    ({ destination }) => !mounts.some((each) => each.destination === destination),
  );
  return {
    ...spec,
    ...(process && { process }),
    ...(linux && { linux }),
    // Ours below /dev and /sys come first; a stable sort keeps what is equally deep in its order.
    mounts: [...kept, ...mounts.sort((a, b) => depth(a.destination) - depth(b.destination))],
    ...(hooks.length > 0 && { hooks: hooksOf(hooks) }),
  };
};

const hooksOf = (hooks: readonly z.infer<typeof Hook>[]): NonNullable<Spec["hooks"]> => {
  const byName: NonNullable<Spec["hooks"]> = {};
  for (const { hookName, ...hook } of hooks) {
    const list = byName[hookName] ?? [];
    byName[hookName] = list;
    list.push({
      path: hook.path,
      ...(hook.args && { args: hook.args }),
      ...(hook.env && { env: hook.env }),
      ...(hook.timeout !== undefined && { timeout: hook.timeout }),
    });
  }
  return byName;
};
