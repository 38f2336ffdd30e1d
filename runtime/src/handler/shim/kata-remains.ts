import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";

/** Where Kata's shims, older and newer, keep what is one sandbox's, each in a directory of its id. */
const places = [
  "run/kata-containers/shared/sandboxes",
  ...["run/kata", "run/kata/firecracker"],
  ...["run/vc/sbs", "run/vc/vm", "run/vc/firecracker"],
];

/** Firecracker's jailer gets a shorter id from the older shim. */
const idsOf = (id: string): string[] => [...new Set([id, id.slice(0, 32)])];

const mountPoints = (): string[] =>
  readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .flatMap((line) => line.split(" ")[4] ?? []);

/**
 * Removes what Kata's shim left of a sandbox whose processes are gone: the older one its directories after every end,
 * the newer one those that it shared with the guest when it was killed. Both mount in a namespace of their own, which
 * ended with them; where anything is mounted all the same it may be a volume, and nothing is touched.
 */
export function removeKataRemains(id: string, root = "/", mounted: readonly string[] = mountPoints()): void {
  const own = places.flatMap((place) => idsOf(id).map((each) => join(root, place, each)));
  for (const path of own)
    if (existsSync(path) && !mounted.some((point) => point === path || point.startsWith(`${path}/`)))
      rmSync(path, { recursive: true, force: true });
}
