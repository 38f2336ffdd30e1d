import { readFile } from "node:fs/promises";

export type MountPoint = { path: string; readonly: boolean; shared: boolean; slave: boolean };

const unescapeOctal = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));

/** proc(5), /proc/PID/mountinfo: mount points with their propagation, in the order of mounting. */
export const parseMountTable = (mountinfo: string): MountPoint[] =>
  mountinfo.split("\n").flatMap((line) => {
    const fields = line.split(" ");
    const path = fields[4];
    if (path === undefined) return [];
    const optional = fields.slice(6, fields.indexOf("-", 6));
    return [
      {
        path: unescapeOctal(path),
        readonly: (fields[5] ?? "").split(",").includes("ro"),
        shared: optional.some((field) => field.startsWith("shared:")),
        slave: optional.some((field) => field.startsWith("master:")),
      },
    ];
  });

/** The mount that a path stands on: the longest mount point above it, the last one mounted there. */
export const mountOf = (table: readonly MountPoint[], path: string): MountPoint | undefined =>
  table
    .filter((mount) => mount.path === "/" || mount.path === path || path.startsWith(`${mount.path}/`))
    .reduce<MountPoint | undefined>(
      (best, mount) => (best === undefined || mount.path.length >= best.path.length ? mount : best),
      undefined,
    );

export const readMountTable = async (): Promise<MountPoint[]> =>
  parseMountTable(await readFile("/proc/self/mountinfo", "utf8"));
