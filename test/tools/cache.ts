import { homedir } from "node:os";
import { join } from "node:path";

/** Everything that is fetched or built is kept here, outside the tree: `$BULKHEAD_CACHE`, or the user's cache folder. */
export const cacheRoot = (): string =>
  process.env.BULKHEAD_CACHE ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "bulkhead");

/** A path in the cache. */
export const inCache = (...parts: string[]): string => join(cacheRoot(), ...parts);

/** A pinned tool by name: `tool("runc")`, `tool("cni/bridge")`. Setup puts it there (test/tools/setup.ts). */
export const tool = (name: string): string => inCache("bin", name);
