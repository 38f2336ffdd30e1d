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

/** Pushes gVisor as an artifact; resolves to its reference by digest. */
export async function clampedGvisor(registry: string): Promise<string> {
  const tree = await mkdtemp(join(tmpdir(), "bh-clamped-"));
  try {
    const bin = join(tree, "bin");
    await mkdir(bin);
    await copyFile(tool("runsc"), join(bin, "runsc-real"));
    await writeFile(join(bin, "runsc"), clampedRuntime("runsc-real"));
    await chmod(join(bin, "runsc"), 0o755);
    await copyFile(tool("containerd-shim-runsc-v1"), join(bin, "runsc-shim"));
    await writeFile(join(bin, "containerd-shim-runsc-v1"), shim);
    await chmod(join(bin, "containerd-shim-runsc-v1"), 0o755);
    const program = join(import.meta.dirname, "../../images/artifact.ts");
    const flags = ["--registry", registry, "--name", "artifacts/clamped", "--insecure"];
    return (await run([process.execPath, program, tree, ...flags])).trim();
  } finally {
    await rm(tree, { recursive: true, force: true });
  }
}
