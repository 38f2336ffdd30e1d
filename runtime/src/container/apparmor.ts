import { existsSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { startProgram } from "../linux/start-program.ts";
import { defaultApparmorProfile } from "../spec/apparmor-default.ts";

const loadMs = 20_000;
/** Where distributions put it: a daemon's PATH need not have /sbin. */
const places = ["/usr/sbin", "/sbin", "/usr/bin"];
const parserName = "apparmor_parser";

/**
 * Loads the default profile into the kernel, over one of an earlier start. Resolves to why it could not be, undefined when
 * it is there. `root` is the node's.
 */
export const loadDefaultApparmor = async (root = "/"): Promise<string | undefined> => {
  const parser = places.map((place) => join(root, place, parserName)).find((path) => existsSync(path));
  if (parser === undefined) return `${parserName} is not installed (the package apparmor)`;
  const abi = existsSync(join(root, "etc/apparmor.d/abi/3.0")) ? "abi/3.0" : undefined;
  const signal = AbortSignal.timeout(loadMs);
  try {
    const child = startProgram(parser, ["--replace", "--skip-cache"], {
      ...{ signal, stdio: ["pipe", "ignore", "pipe"] },
    });
    const code = new Promise<number | null>((resolve, reject) => {
      child.once("error", reject);
      child.once("close", resolve);
    });
    // One that ends without reading says why itself.
    child.stdin.on("error", () => {});
    child.stdin.end(defaultApparmorProfile(abi));
    const [words, ended] = await Promise.all([text(child.stderr), code]);
    return ended === 0 ? undefined : `${parserName} ended with ${ended}: ${words.trim().slice(0, 1000)}`;
  } catch (error) {
    return `${parserName}: ${messageOf(error)}`;
  }
};
