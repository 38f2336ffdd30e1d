import type { SELinuxOption } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** An SELinux context: `user:role:type:level`. */
export type Context = { user: string; role: string; type: string; level: string };
/**
 * What the node's policy gives a container's process and its files, and what containers read of the node's; a policy
 * need not know the last.
 */
export type Contexts = { process: Context; file: Context; readOnly: Context | undefined };

/** Labels as the kernel has them: of a container's process, and of its files. */
export type SelinuxLabels = { process: string; mount: string };

/** What a part of a label is where the policy's file does not say (container-selinux' own default). */
const usual: Contexts = {
  process: { user: "system_u", role: "system_r", type: "container_t", level: "s0" },
  file: { user: "system_u", role: "object_r", type: "container_file_t", level: "s0" },
  readOnly: { user: "system_u", role: "object_r", type: "container_ro_file_t", level: "s0" },
};
const part = /^[A-Za-z0-9_.]+$/;
const range = /^s\d+(-s\d+)?(:c\d{1,4}([.,]c\d{1,4})*)?$/;

const parseContext = (text: string): Context | undefined => {
  const [user, role, type, ...level] = text.split(":");
  if (!user || !role || !type || level.length === 0) return undefined;
  return { user, role, type, level: level.join(":") };
};

/** The `process`, `file` and `ro_file` of a policy's lxc_contexts; undefined where one of the first two is missing. */
export const parseContexts = (text: string): Contexts | undefined => {
  const values = new Map(
    text.split("\n").flatMap((line) => {
      const match = /^\s*([a-z_]+)\s*=\s*"?([^"\s]+)"?\s*$/.exec(line);
      return match ? [[match[1], match[2] ?? ""] as const] : [];
    }),
  );
  const process = parseContext(values.get("process") ?? "");
  const file = parseContext(values.get("file") ?? "");
  return process && file && { process, file, readOnly: parseContext(values.get("ro_file") ?? "") };
};

/** The label of what containers only read and execute: their images' files. */
export const readOnlyLabel = (contexts: Contexts | undefined): string | undefined =>
  contexts?.readOnly && labelOf(contexts.readOnly);

const labelOf = ({ user, role, type, level }: Context): string => [user, role, type, level].join(":");

/** The type of a label as the kernel gives it, which ends it with a NUL. */
export const typeOf = (label: string): string | undefined => parseContext(label.replace(/\0$/, ""))?.type;

/** The policy's name in /etc/selinux/config, which is the name of its directory. */
export const policyOf = (config: string): string =>
  /^\s*SELINUXTYPE\s*=\s*([A-Za-z0-9_-]+)\s*$/m.exec(config)?.[1] ?? "targeted";

const categories = 1024;

/**
 * A level that no other pod has: two of 1024 categories. Without a common pair neither may touch the other's files
 * or processes. `random` gives an integer from 0 up to, but not with, its argument.
 */
export const freeLevel = (taken: ReadonlySet<string>, random: (below: number) => number): string => {
  // A node has room for half a million pairs and runs a few hundred pods: the bound is for a broken `random`.
  for (let tries = 0; tries < 10_000; tries++) {
    const [a, b] = [random(categories), random(categories)];
    const level = `s0:c${Math.min(a, b)},c${Math.max(a, b)}`;
    if (a !== b && !taken.has(level)) return level;
  }
  throw new RuntimeError("resource-exhausted", "Cannot find a free pair of SELinux categories for the pod");
};

const isEmpty = ({ user, role, type, level }: SELinuxOption): boolean =>
  user === "" && role === "" && type === "" && level === "";

/** What counts of the options of a container and its pod: the kubelet has merged them where a container has its own. */
export const selinuxOptions = (
  container: SELinuxOption | undefined,
  pod: SELinuxOption | undefined,
): SELinuxOption | undefined => [container, pod].find((option) => option !== undefined && !isEmpty(option));

/**
 * The labels of a container's process and of its files; undefined: none. `level` is the pod's own. Without `contexts`
 * the node's policy knows of no containers, and only who asked for a label gets one.
 */
export const selinuxLabels = (
  option: SELinuxOption | undefined,
  { contexts, level }: { contexts: Contexts | undefined; level: string | undefined },
): SelinuxLabels | undefined => {
  const asked = option === undefined || isEmpty(option) ? undefined : option;
  if (asked === undefined && contexts === undefined) return undefined;
  const { process, file } = contexts ?? usual;
  const parts: Context = {
    user: asked?.user || process.user,
    role: asked?.role || process.role,
    type: asked?.type || process.type,
    level: asked?.level || level || process.level,
  };
  for (const [name, pattern] of [
    ["user", part],
    ["role", part],
    ["type", part],
    ["level", range],
  ] as const)
    if (!pattern.test(parts[name]))
      throw new RuntimeError("invalid-argument", `Cannot use SELinux ${name} "${parts[name]}"`);
  return {
    process: labelOf(parts),
    mount: labelOf({ ...file, user: asked?.user || file.user, level: parts.level }),
  };
};

/** Directories of the node's own whose files no container may have labelled for itself, nor what they are in. */
const nodes = new Set([
  ...[
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
  ],
  ...["/media", "/mnt", "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var"],
  ...["/var/lib", "/var/log", "/var/lib/kubelet"],
]);

/** Refuses to give one of the node's own directories the label of a container. `path` has no links and no `..`. */
export const requireRelabelable = (path: string): void => {
  if (nodes.has(path))
    throw new RuntimeError(
      "invalid-argument",
      `Cannot relabel "${path}" for a container: it is the node's own`,
    );
};
