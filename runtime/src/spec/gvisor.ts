import type { Mount, Spec } from "./oci.ts";

/** A path of the container that is there: where it stands on the node, and what it is. */
export type FoundPath = { path: string; source: string; kind: "file" | "directory" };

/** A mount below the source of another one. */
export type Submount = { destination: string; source: string; readonly: boolean };

/** What the specification alone does not say. */
export type GvisorFacts = {
  masked: readonly FoundPath[];
  readonly: readonly FoundPath[];
  /** By destination of the read-only mount that they are below. */
  submounts: ReadonlyMap<string, readonly Submount[]>;
  /** An empty file that nobody may execute. */
  emptyFile: string;
};

/** A node of NVIDIA's driver, by its place in the container, as gVisor takes it for one. */
export const isGpu = ({ path }: { path: string }): boolean => path.startsWith("/dev/nvidia");

/** gVisor's own places: nothing of the node shows in them, and it keeps them itself. */
const gvisorsOwn = ["/proc", "/sys", "/dev"];

/** Paths of maskedPaths and readonlyPaths that mounts must stand for. */
export const pathsOf = (paths: readonly string[] = []): string[] =>
  paths.filter((path) => !gvisorsOwn.some((own) => path === own || path.startsWith(`${own}/`)));

const depth = (path: string): number => path.split("/").filter((part) => part !== "").length;
const byDepth = (a: FoundPath, b: FoundPath): number => depth(a.path) - depth(b.path);

/** A mount that is read-only itself while what is mounted below it stays as it is (mount(8), "ro"). */
export const onlyItselfReadonly = (mount: Mount): boolean =>
  mount.type === "bind" && (mount.options?.includes("ro") ?? false);

/**
 * The specification as runsc must be given it to do the same. runsc reads neither maskedPaths nor readonlyPaths, does
 * not know "rro", and makes a read-only mount read-only down to its leaves.
 */
export const gvisorSpec = (spec: Spec, facts: GvisorFacts): Spec => {
  const taken = new Set(spec.mounts.map(({ destination }) => destination));
  const submountsOf = (mount: Mount): Mount[] =>
    (facts.submounts.get(mount.destination) ?? [])
      .filter(({ destination }) => !taken.has(destination))
      .map(({ destination, source, readonly }) => ({
        destination,
        type: "bind",
        source,
        options: (mount.options ?? []).map((option) => (option === "ro" && !readonly ? "rw" : option)),
      }));
  const readonly = [...facts.readonly].sort(byDepth).map(
    ({ path, source }): Mount => ({
      destination: path,
      type: "bind",
      source,
      options: ["rbind", "rprivate", "ro"],
    }),
  );
  const masked = [...facts.masked].sort(byDepth).map(
    ({ path, kind }): Mount =>
      kind === "directory"
        ? {
            destination: path,
            type: "tmpfs",
            source: "tmpfs",
            options: ["ro", "nosuid", "noexec", "nodev"],
          }
        : { destination: path, type: "bind", source: facts.emptyFile, options: ["rprivate", "ro"] },
  );
  return {
    ...spec,
    mounts: [
      ...spec.mounts.flatMap((mount) => [recursive(mount), ...submountsOf(mount)]),
      ...readonly,
      ...masked,
    ],
  };
};

const recursive = (mount: Mount): Mount =>
  mount.options?.includes("rro")
    ? { ...mount, options: mount.options.map((option) => (option === "rro" ? "ro" : option)) }
    : mount;
