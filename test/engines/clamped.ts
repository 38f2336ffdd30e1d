import { chmod, copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { tool } from "../tools/cache.ts";
import { run } from "../tools/run.ts";

/**
 * Walls as artifacts that an engine can start on a machine without CAP_SYS_RESOURCE, as the tests' is: nobody there may
 * lower an OOM score, and gVisor's shim and runc end where they cannot. The programs are the real ones; a few lines of
 * shell in front of them leave the score alone.
 */

/**
 * An OCI runtime that is given no score below nought: CRI-O and cri-dockerd ask for -998 for a pod's first container.
 * `real` stands beside it.
 */
export const clampedRuntime = (real: string): string => `#!/bin/sh
before=
for argument; do
  case $before in
  -bundle | --bundle) sed -i -E 's/("oomScoreAdj": *)-[0-9]+/\\10/' "$argument/config.json" ;;
  esac
  before=$argument
done
exec "$(dirname "$(readlink -f "$0")")/${real}" "$@"
`;

/** `start` without the score: the shim with no command is the server itself. Everything else goes to the shim. */
const shim = `#!/bin/sh
real=$(dirname "$(readlink -f "$0")")/runsc-shim
for command; do :; done
[ "$command" = start ] || exec "$real" "$@"
id= before= count=$#
while [ $count -gt 1 ]; do
  [ "$before" != -id ] || id=$1
  before=$1
  set -- "$@" "$1"
  shift
  count=$((count - 1))
done
shift
mkdir -p /run/clamped
socket=/run/clamped/$(echo "$id" | cut -c1-16).sock
printf %s "unix://$socket" >address
"$real" "$@" -socket "$socket" </dev/null >/dev/null 2>&1 &
tries=0
until [ -S "$socket" ] || [ $tries = 200 ]; do
  sleep 0.05
  tries=$((tries + 1))
done
printf %s "unix://$socket"
`;

/** A shim that finds the runtime beside it. */
const besideRunc = `#!/bin/sh
bin=$(dirname "$(readlink -f "$0")")
PATH=$bin:$PATH exec "$bin/copied-shim" "$@"
`;

/** Pushes gVisor as an artifact; resolves to its reference by digest. */
export const clampedGvisor = (registry: string): Promise<string> =>
  push(registry, "clamped", {
    "runsc-real": { from: tool("runsc") },
    runsc: clampedRuntime("runsc-real"),
    "runsc-shim": { from: tool("containerd-shim-runsc-v1") },
    "containerd-shim-runsc-v1": shim,
  });

/**
 * The same of runc, and of the copy of a containerd shim for it, whose runtime type is io.containerd.copied.v2 and that
 * nothing of Bulkhead's knows.
 */
export const clampedRunc = (registry: string, copied: string): Promise<string> =>
  push(registry, "copied", {
    "runc-real": { from: tool("runc") },
    runc: clampedRuntime("runc-real"),
    "copied-shim": { from: copied },
    "containerd-shim-copied-v2": besideRunc,
  });

/** The same, but each container takes `seconds` longer to be made, as in a virtual machine that is slow. */
export const slowRunc = (registry: string, copied: string, seconds: number): Promise<string> =>
  push(registry, `slow-${seconds}`, {
    "runc-real": { from: tool("runc") },
    "runc-clamped": clampedRuntime("runc-real"),
    runc: `#!/bin/sh
case " $* " in *" create "*) sleep ${seconds} ;; esac
exec "$(dirname "$(readlink -f "$0")")/runc-clamped" "$@"
`,
    "copied-shim": { from: copied },
    "containerd-shim-copied-v2": besideRunc,
  });

/** Pushes programs, each a copy or a script, as an artifact. */
async function push(
  registry: string,
  name: string,
  programs: Record<string, string | { from: string }>,
): Promise<string> {
  const tree = await mkdtemp(join(tmpdir(), "bh-clamped-"));
  try {
    const bin = join(tree, "bin");
    await mkdir(bin);
    for (const [program, what] of Object.entries(programs)) {
      const path = join(bin, program);
      await (typeof what === "string" ? writeFile(path, what) : copyFile(what.from, path));
      await chmod(path, 0o755);
    }
    const builder = join(import.meta.dirname, "../../images/artifact.ts");
    const flags = ["--registry", registry, "--name", `artifacts/${name}`, "--insecure"];
    return (await run([process.execPath, builder, tree, ...flags])).trim();
  } finally {
    await rm(tree, { recursive: true, force: true });
  }
}
