import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { realpath } from "node:fs/promises";
import { basename, join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
const repository = join(import.meta.dirname, "..");

/** What images of one architecture are made of. */
export type Parts = {
  /** As OCI names it. */
  architecture: string;
  /** The name of its dynamic loader. */
  loader: string;
  node: string;
  conmon: string;
  crun: string;
  busybox: string;
  /** Where the libraries of these are. */
  libraries: readonly string[];
  /** The pinned programs, by name. */
  bin: string;
  /** The package of koffi's native part: its name, and where it is. */
  koffi: { name: string; directory: string };
  cc: string;
};

/** How Node.js, Debian and the C library name each architecture. */
export const architectures = {
  amd64: { node: "x64", triplet: "x86_64-linux-gnu", loader: "ld-linux-x86-64.so.2" },
  arm64: { node: "arm64", triplet: "aarch64-linux-gnu", loader: "ld-linux-aarch64.so.1" },
} as const;

type Architecture = keyof typeof architectures;

/** The architecture of this machine. */
export const here: Architecture = process.arch === "arm64" ? "arm64" : "amd64";

/**
 * The parts for an architecture: this machine's own for its own; what `./dev tools --arch` put into `cache` for another.
 * Throws when one is missing.
 */
export const partsFor = async (architecture: string, cache: string): Promise<Parts> => {
  const kind = architectures[architecture as Architecture] as
    | (typeof architectures)[Architecture]
    | undefined;
  if (kind === undefined)
    throw new Error(
      `Cannot build for "${architecture}": it is one of ${Object.keys(architectures).join(", ")}`,
    );
  const own = architecture === here;
  const home = join(cache, architecture);
  const root = own ? "/" : join(home, "root");
  const koffi = `@koromix/koffi-linux-${kind.node}`;
  const program = async (name: string, from: string): Promise<string> => {
    const path = own
      ? await run("which", [name]).then(
          ({ stdout }) => stdout.trim(),
          () => "",
        )
      : join(root, "usr/bin", name);
    if (!existsSync(path))
      throw new Error(
        `Cannot find "${name}" for ${architecture}: ${own ? `install ${from}` : `run ./dev tools --arch ${architecture}`}`,
      );
    return path;
  };
  return {
    architecture,
    loader: kind.loader,
    node: own ? await realpath(process.execPath) : join(home, "node/bin/node"),
    conmon: await program("conmon", "the package conmon"),
    crun: await program("crun", "the package crun"),
    busybox: await program("busybox", "the package busybox-static"),
    libraries: [join(root, "lib", kind.triplet), join(root, "usr/lib", kind.triplet)],
    bin: own ? join(cache, "bin") : join(cache, "bin", architecture),
    koffi: {
      name: koffi,
      directory: own ? join(repository, "node_modules", koffi) : join(home, "koffi"),
    },
    cc: own ? "cc" : `${kind.triplet}-gcc`,
  };
};

/** The shared libraries of programs, and theirs, by name: where each is. */
export const librariesOf = async (
  programs: readonly string[],
  { libraries }: Parts,
): Promise<Map<string, string>> => {
  const found = new Map<string, string>();
  const look = async (path: string): Promise<void> => {
    const { stdout } = await run("patchelf", ["--print-needed", path]);
    for (const name of stdout.split("\n").filter((line) => line !== "")) {
      if (found.has(name)) continue;
      const library = libraries.map((directory) => join(directory, name)).find(existsSync);
      if (library === undefined)
        throw new Error(`Cannot find "${name}", which ${basename(path)} needs, in ${libraries.join(", ")}`);
      found.set(name, await realpath(library));
      await look(library);
    }
  };
  for (const program of programs) await look(program);
  return found;
};
