import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { chmod, cp, link, mkdir, mkdtemp, readdir, readFile, rename, rm, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { arm64Cc, arm64Libraries, arm64Root } from "./arm64.ts";
import { inCache } from "./cache.ts";
import { debianProgram } from "./debian.ts";
import type { GoBuild } from "./plan.ts";
import { outcome, run } from "./run.ts";

/** The toolchain that a machine without Go gets. One that has any Go from 1.21 fetches what go.mod asks for itself. */
const toolchain = "go1.26.8";

const flags = { GOFLAGS: "-mod=readonly -buildvcs=false", GOTOOLCHAIN: "auto" };

/**
 * Builds the programs of one pinned module that are not in the cache, and puts all of them into the cache's bin.
 * A program is kept under a name made of everything that decides what it is.
 */
export const buildGo = async (
  module: string,
  builds: readonly GoBuild[],
  signal?: AbortSignal,
): Promise<void> => {
  const cwd = join(import.meta.dirname, module);
  for (const build of builds) {
    const sources = await sourcesIn(cwd, build.modfile);
    // A program of our own stands in a directory of the module.
    const own = build.package.startsWith("./") ? await sourcesIn(join(cwd, build.package)) : [];
    const key = createHash("sha256")
      .update(JSON.stringify([build, [...sources, ...own], process.arch]))
      .digest("hex")
      .slice(0, 16);
    const name = build.output.replaceAll("/", "-");
    const kept = inCache("tools", `${name}-${key}`, basename(build.output));
    if (!existsSync(kept)) {
      await compile(build, cwd, kept, signal);
    }
    await place(kept, inCache("bin", build.output));
  }
};

const sourcesIn = async (directory: string, modfile = "go.mod"): Promise<string[]> =>
  await Promise.all(
    (await readdir(directory))
      .filter((name) => name.endsWith(".go") || name === modfile || name === sumsOf(modfile))
      .sort()
      .map(async (name) => `${name}\n${await readFile(join(directory, name), "utf8")}`),
  );

const sumsOf = (modfile: string): string => modfile.replace(/\.mod$/, ".sum");

const compile = async (build: GoBuild, cwd: string, to: string, signal?: AbortSignal): Promise<void> => {
  const go = await goProgram(signal);
  await mkdir(dirname(dirname(to)), { recursive: true });
  const scratch = await mkdtemp(inCache("tools", ".new-"));
  try {
    await chmod(scratch, 0o755);
    if (build.c !== undefined)
      await compileC(go, build.package, build.c, cwd, join(scratch, basename(to)), signal);
    else
      await run(
        [
          ...(build.test === true ? [go, "test", "-c"] : [go, "build"]),
          ...(build.modfile === undefined ? [] : [`-modfile=${build.modfile}`]),
          ...(build.tags === undefined ? [] : ["-tags", build.tags]),
          ...["-trimpath", "-ldflags", `-s -w ${build.ldflags ?? ""}`.trim()],
          ...["-o", join(scratch, basename(to)), build.package],
        ],
        { cwd, signal, env: { ...flags, CGO_ENABLED: build.cgo === true ? "1" : "0", ...forOther(build) } },
      );
    await rename(scratch, dirname(to)).catch((error: unknown) => {
      if (!existsSync(to)) throw error;
    });
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
};

/** What Go needs to build for another architecture than this machine's. */
const forOther = ({ arch, cgo }: GoBuild): Record<string, string> => {
  if (arch === undefined) return {};
  if (cgo !== true) return { GOARCH: arch };
  const root = arm64Root();
  return {
    GOARCH: arch,
    CC: arm64Cc,
    PKG_CONFIG_LIBDIR: join(root, arm64Libraries, "pkgconfig"),
    PKG_CONFIG_SYSROOT_DIR: root,
  };
};

/** A program in C that a Go module has beside its Go, as the module's own Makefile makes it. */
const compileC = async (
  go: string,
  module: string,
  folder: string,
  cwd: string,
  to: string,
  signal?: AbortSignal,
): Promise<void> => {
  const list = [go, "mod", "download", "-json", module];
  const { Dir } = JSON.parse(await run(list, { cwd, signal, env: flags })) as { Dir: string };
  const sources = (await readdir(join(Dir, folder))).filter((name) => name.endsWith(".c")).sort();
  const files = sources.map((name) => join(Dir, folder, name));
  await run(["gcc", "-std=c99", "-Os", "-s", "-static", "-o", to, ...files], { signal });
};

/** Makes `path` name the same file as `kept`, at once, whatever ran from it before. */
export const place = async (kept: string, path: string): Promise<void> => {
  await mkdir(dirname(path), { recursive: true });
  const fresh = `${path}.${process.pid}.new`;
  await unlink(fresh).catch(() => {});
  await link(kept, fresh);
  // rename(2) of two names of one file does nothing, and leaves both.
  await rename(fresh, path);
  await unlink(fresh).catch(() => {});
};

let found: Promise<string> | undefined;
const goProgram = (signal?: AbortSignal): Promise<string> => {
  found ??= findGo(signal);
  found.catch(() => {
    found = undefined;
  });
  return found;
};

/** Go of this machine, if it can fetch the toolchain that go.mod asks for; else that toolchain, from the module proxy. */
const findGo = async (signal?: AbortSignal): Promise<string> => {
  for (const go of ["go", "/usr/local/go/bin/go"]) {
    const answer = await outcome([go, "env", "GOVERSION"]).catch(() => undefined);
    const [, major = 0, minor = 0] = /^go(\d+)\.(\d+)/.exec(answer?.stdout ?? "")?.map(Number) ?? [];
    if (major > 1 || minor >= 21) return go;
  }
  const home = inCache("go", toolchain);
  const go = join(home, "bin/go");
  if (existsSync(go)) return go;
  // Debian's Go is too old to build anything here, but it can download a module, and Go itself is one.
  const old = await debianProgram("golang-1.19-go", "usr/lib/go-1.19/bin/go", signal).catch(
    (error: unknown) => {
      throw new RuntimeError(
        "failed-precondition",
        "Cannot find Go: install Go 1.26 or newer from https://go.dev/dl",
        {
          cause: error,
        },
      );
    },
  );
  const version = `golang.org/toolchain@v0.0.1-${toolchain}.linux-${process.arch === "x64" ? "amd64" : process.arch}`;
  await mkdir(inCache("go"), { recursive: true });
  const scratch = await mkdtemp(inCache("go", ".new-"));
  try {
    const env = {
      GOROOT: dirname(dirname(old)),
      GOPATH: join(scratch, "path"),
      GOFLAGS: "-modcacherw",
      GO111MODULE: "on",
    };
    const { Dir } = JSON.parse(
      await run([old, "mod", "download", "-json", version], { cwd: scratch, env, signal }),
    ) as {
      Dir: string;
    };
    await cp(Dir, join(scratch, "tree"), { recursive: true });
    // A module's archive does not say what may be executed.
    for (const dir of ["bin", `pkg/tool/linux_${process.arch === "x64" ? "amd64" : process.arch}`])
      for (const name of await readdir(join(scratch, "tree", dir)))
        await chmod(join(scratch, "tree", dir, name), 0o755);
    await rename(join(scratch, "tree"), home);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return go;
};
