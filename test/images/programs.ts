import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, realpath, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { inCache } from "../tools/cache.ts";
import { debianProgram } from "../tools/debian.ts";
import { run } from "../tools/run.ts";
import type { Entry } from "./tar.ts";

/** A folder in the cache that is made once: under another name first, so that half a one is never found. */
const madeOnce = async (name: string, make: (folder: string) => Promise<void>): Promise<string> => {
  const home = inCache("images", name);
  if (existsSync(home)) return home;
  await mkdir(inCache("images"), { recursive: true });
  const scratch = await mkdtemp(inCache("images", ".new-"));
  try {
    await make(scratch);
    // Whoever was first wins: both made the same.
    await rename(scratch, home).catch((error: NodeJS.ErrnoException) => {
      if (!existsSync(home)) throw error;
    });
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return home;
};

const keyOf = (...parts: string[]): string =>
  createHash("sha256").update(parts.join("\0")).digest("hex").slice(0, 16);

/** Compiles a static C program; kept by the hash of its source. */
export const compiled = async (name: string, source: string): Promise<Buffer> => {
  const home = await madeOnce(`${name}-${keyOf(source)}`, async (folder) => {
    await writeFile(join(folder, `${name}.c`), source);
    await run([
      "gcc",
      "-static",
      "-Os",
      "-s",
      "-Wall",
      "-Werror",
      "-o",
      join(folder, name),
      join(folder, `${name}.c`),
    ]);
  });
  return await readFile(join(home, name));
};

/** A key and a certificate of its own for localhost; kept, so that an image is the same each time. */
export const localhostPair = async (): Promise<{ key: Buffer; certificate: Buffer }> => {
  const home = await madeOnce("localhost-tls", async (folder) => {
    await run([
      ...[
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "36500",
        "-subj",
        "/CN=localhost",
      ],
      ...["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
      ...["-keyout", join(folder, "key"), "-out", join(folder, "certificate")],
    ]);
  });
  const [key, certificate] = await Promise.all(
    ["key", "certificate"].map((name) => readFile(join(home, name))),
  );
  return { key: key!, certificate: certificate! };
};

/**
 * Options of busybox that differ from its defaults. Its shell must run /bin/ls as a program: one that runs its own ls
 * whatever is mounted over /bin/ls hides what masked paths do. Debian's busybox-static does that and has no pgrep.
 */
const busyboxOptions = {
  STATIC: "y",
  FEATURE_SH_STANDALONE: "n",
  FEATURE_PREFER_APPLETS: "n",
  // Does not compile against the headers of newer kernels.
  TC: "n",
};

/** Builds busybox from Debian's source package. Returns the program and the paths of its applets. */
export const busybox = async (): Promise<{ program: Buffer; applets: string[] }> => {
  const home = await madeOnce(
    `busybox-${keyOf(JSON.stringify(busyboxOptions), process.arch)}`,
    async (folder) => {
      const build = join(folder, "build");
      await mkdir(build);
      await run(["apt-get", ...(await sourceApt(build)), "source", "-q", "busybox"], { cwd: build });
      const tree = (await readdir(build, { withFileTypes: true })).find(
        (entry) => entry.isDirectory() && entry.name.startsWith("busybox-"),
      );
      if (tree === undefined)
        throw new RuntimeError("not-found", "Cannot find the busybox source package in apt");
      const cwd = join(build, tree.name);
      await run(["make", "defconfig"], { cwd });
      const config = await readFile(join(cwd, ".config"), "utf8");
      const settings = Object.entries(busyboxOptions).map(([name, value]) =>
        value === "y" ? `CONFIG_${name}=y` : `# CONFIG_${name} is not set`,
      );
      const others = config
        .split("\n")
        .filter(
          (line) =>
            !Object.keys(busyboxOptions).some((name) => new RegExp(`\\bCONFIG_${name}\\b`).test(line)),
        );
      await writeFile(join(cwd, ".config"), `${[...others, ...settings].join("\n")}\n`);
      await run(["make", "oldconfig"], { cwd, input: "\n".repeat(1000) });
      await run(["make", "-j2"], { cwd });
      await rename(join(cwd, "busybox"), join(folder, "busybox"));
      await rm(build, { recursive: true });
    },
  );
  const program = join(home, "busybox");
  const applets = (await run([program, "--list-full"])).split("\n").filter((path) => path !== "");
  return { program: await readFile(program), applets };
};

/** Arguments that make apt read the source packages of this machine's Debian mirrors, in a folder of its own. */
const sourceApt = async (folder: string): Promise<string[]> => {
  for (const each of ["lists/partial", "archives/partial"])
    await mkdir(join(folder, each), { recursive: true });
  const list = join(folder, "sources.sources");
  const found: string[] = [];
  for (const at of ["/etc/apt", "/etc/apt/sources.list.d"]) {
    for (const name of await readdir(at)) {
      if (!/\.(?:list|sources)$/.test(name)) continue;
      found.push(...sourceStanzas(await readFile(join(at, name), "utf8"), name.endsWith(".list")));
    }
  }
  await writeFile(list, `${found.join("\n\n")}\n`);
  const options = {
    "Dir::Etc::sourcelist": list,
    "Dir::Etc::sourceparts": "/dev/null",
    "Dir::State::lists": join(folder, "lists"),
    "Dir::Cache": folder,
    "APT::Sandbox::User": "root",
  };
  const args = Object.entries(options).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
  await run(["apt-get", ...args, "update", "-q"]);
  return args;
};

/** The Debian archives that an apt sources file names, as deb-src entries in its stanza format. */
export const sourceStanzas = (text: string, oneLine: boolean): string[] => {
  const isDebian = (uris: string): boolean => /\/debian(?:-security)?\/?(?:\s|$)/.test(uris);
  if (!oneLine) {
    return text
      .split(/\n\s*\n/)
      .map((stanza) => stanza.replace(/^#.*\n?/gm, "").trim())
      .filter((stanza) => isDebian(/^URIs:(.*)$/m.exec(stanza)?.[1] ?? ""))
      .map((stanza) => stanza.replace(/^Types:.*$/m, "Types: deb-src"));
  }
  return [...text.matchAll(/^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)$/gm)]
    .filter(([, , uri = ""]) => isDebian(uri))
    .map(([, options = "", uri, suite, components]) => {
      const key = /signed-by=(\S+)/.exec(options)?.[1];
      const lines = ["Types: deb-src", `URIs: ${uri}`, `Suites: ${suite}`, `Components: ${components}`];
      return [...lines, ...(key === undefined ? [] : [`Signed-By: ${key}`])].join("\n");
    });
};

/** The folder of an unpacked Debian package. */
export const packageTree = async (pkg: string): Promise<string> =>
  dirname(dirname(dirname(dirname(await debianProgram(pkg, `usr/share/doc/${pkg}`)))));

/**
 * Files of Debian packages (path in the image → path in its package) with the shared libraries that they need, found
 * in `libraries`, and the dynamic loader.
 */
export const withLibraries = async (
  files: readonly { pkg: string; from: string; to: string }[],
  libraries: readonly string[],
): Promise<Entry[]> => {
  const trees = await Promise.all(["libc6", ...libraries].map(packageTree));
  const entries = new Map<string, Entry>();
  const queue: { from: string; to: string }[] = [];
  for (const { pkg, from, to } of files) queue.push({ from: join(await packageTree(pkg), from), to });
  for (let next = queue.pop(); next !== undefined; next = queue.pop()) {
    if (entries.has(next.to)) continue;
    entries.set(next.to, { type: "file", path: next.to, mode: 0o755, data: await readFile(next.from) });
    const said = await run(["readelf", "-W", "-d", "-l", next.from]);
    for (const [, name = ""] of said.matchAll(/\(NEEDED\).*\[(.*)\]/g)) {
      const found = await findLibrary(trees, name);
      queue.push({ from: found, to: `lib/${basename(dirname(found))}/${name}` });
    }
    const loader = /interpreter: (\/\S+)\]/.exec(said)?.[1];
    if (loader !== undefined) {
      queue.push({ from: await findLibrary(trees, basename(loader)), to: loader.slice(1) });
    }
  }
  return [...entries.values()].sort((a, b) => (a.path < b.path ? -1 : 1));
};

const findLibrary = async (trees: readonly string[], name: string): Promise<string> => {
  for (const tree of trees) {
    for (const folder of ["lib", "usr/lib"]) {
      for (const triplet of await readdir(join(tree, folder)).catch(() => [])) {
        const path = join(tree, folder, triplet, name);
        if (existsSync(path)) return await realpath(path);
      }
    }
  }
  throw new RuntimeError("not-found", `Cannot find the library ${name} in the packages named for it`);
};
