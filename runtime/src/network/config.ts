import { readdirSync, readFileSync } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { readBounded } from "@bulkhead/lib/std/bounded-file.ts";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";
import { throwExhausted } from "../linux/exhausted.ts";
import { type CniNetwork, candidates, networkOf } from "./plan.ts";

const FILE_MAX = 1024 * 1024;

/** The network to attach pods to, or why there is none. */
export type Loaded = { network: CniNetwork } | { missing: string };

/**
 * Reads the configuration directory live: each call looks at names, sizes and times, and parses only when one of
 * them changed. The first valid file by name wins; a broken one before it is passed over.
 */
export const createConfig = (confDir: string): (() => Promise<Loaded>) => {
  let known: { signature: string; loaded: Loaded } | undefined;
  return async () => {
    const signature = await signatureOf(confDir);
    if (known?.signature === signature) return known.loaded;
    const loaded = await load(confDir);
    known = { signature, loaded };
    return loaded;
  };
};

const signatureOf = async (confDir: string): Promise<string> => {
  const names = await namesIn(confDir);
  const parts = await Promise.all(
    names.map(async (name) => {
      const at = await stat(join(confDir, name), { bigint: true }).catch(() => undefined);
      return `${name}\0${at?.ino}\0${at?.size}\0${at?.mtimeNs}\0${at?.ctimeNs}`;
    }),
  );
  return parts.join("\0\0");
};

/** All names: files, and directories of folded plugins, whose mtime tells of what is added or removed. */
const namesIn = async (dir: string): Promise<string[]> => (await readdir(dir).catch(() => [])).sort();

const load = async (confDir: string): Promise<Loaded> => {
  const problems: string[] = [];
  for (const name of candidates(await namesIn(confDir))) {
    const path = join(confDir, name);
    try {
      const text = await readBounded(path, FILE_MAX);
      return { network: networkOf(name, text, (network) => foldedIn(join(confDir, network))) };
    } catch (error) {
      problems.push(`${path}: ${error instanceof z.ZodError ? z.prettifyError(error) : messageOf(error)}`);
    }
  }
  return {
    missing:
      problems.length === 0
        ? `no CNI configuration in ${confDir}`
        : `no valid CNI configuration in ${confDir}: ${problems.join("; ")}`,
  };
};

/** Plugins in files of their own, in the directory named like the network. */
const foldedIn = (dir: string): string[] => {
  let names: string[];
  try {
    names = readdirSync(dir);
  } catch (error) {
    throwExhausted(error);
    return [];
  }
  return candidates(names)
    .filter((name) => name.endsWith(".conf"))
    .map((name) => readFileSync(join(dir, name), "utf8"));
};
