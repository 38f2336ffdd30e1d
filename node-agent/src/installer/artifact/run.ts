import { mkdir, readdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { z } from "zod";
import { exists } from "../facts.ts";
import { artifactDirectory, certsDirectory, installed, versionDirectory } from "../files.ts";
import type { Host } from "../host.ts";
import type { Wanted } from "./plan.ts";

/** The runtime's own program fetches and verifies: the installer has no image code and no network. */

/** A slow registry and gigabytes of Kata. */
const deadlineMs = 60 * 60_000;
/** Where the kubelet looks for the node's credentials, too. */
const kubeletCredentials = "/var/lib/kubelet/config.json";

export type RunArtifact = {
  host: Host;
  /** The bundle's version, which is on the host. */
  version: string;
  /** HOST[:PORT][/PATH] that stands for every registry; undefined: each image's own. */
  registry: string | undefined;
};

const Fetched = z.object({ list: z.string().regex(/^sha256:[0-9a-f]{64}$/), files: z.int(), bytes: z.int() });
export type Fetched = z.infer<typeof Fetched>;

/** Fetches what a profile wants into `directory`, which must not be there. */
export async function fetchOnHost(
  context: RunArtifact,
  want: Wanted,
  directory: string,
  signal: AbortSignal,
): Promise<Fetched> {
  const line = await runArtifact(context, "fetch", want, [directory], signal);
  return Fetched.parse(JSON.parse(line));
}

/** Verifies the signature of what a profile wants. */
export const verifyOnHost = async (
  context: RunArtifact,
  want: Wanted,
  signal: AbortSignal,
): Promise<void> => {
  await runArtifact(context, "verify", want, [], signal);
};

async function runArtifact(
  { host, version, registry }: RunArtifact,
  command: "fetch" | "verify",
  want: Wanted,
  rest: string[],
  signal: AbortSignal,
): Promise<string> {
  const keys = `${artifactDirectory(want.image)}.keys`;
  await using undo = new AsyncDisposableStack();
  undo.defer(() => rm(host.at(keys), { recursive: true, force: true }));
  await mkdir(host.at(keys), { recursive: true, mode: 0o700 });
  const flags: string[] = ["--identity", want.identity];
  for (const [n, key] of want.keys.entries()) {
    await writeFile(host.at(join(keys, `${n}.pem`)), key);
    flags.push("--key", join(keys, `${n}.pem`));
  }
  if (registry !== undefined) flags.push("--registry", registry);
  // It names the engine's registries, or those of the cluster's settings.
  if (await exists(host.at(paths.config))) flags.push("--config", paths.config);
  else flags.push("--certs", certsDirectory);
  if (await exists(host.at(kubeletCredentials))) flags.push("--credentials", kubeletCredentials);
  const at = versionDirectory(version);
  const { code, stdout, stderr } = await host.run(
    [join(at, "bin/node"), join(at, "runtime/main.mjs"), "artifact", command, ...flags, want.image, ...rest],
    { signal, timeoutMs: deadlineMs },
  );
  if (code === 0) return stdout;
  const said = stderr
    .trim()
    .split("\n")
    .at(-1)
    ?.replace(/^bulkhead-runtime: /, "");
  throw new RuntimeError(
    "failed-precondition",
    said || `Cannot ${command} artifact ${want.image}: exit code ${code}`,
  );
}

/** Digests of artifacts that a running process was started from or names, or that a pod's record leads to. */
export async function busyArtifacts(host: Host): Promise<Set<string>> {
  const busy = new Set<string>();
  const note = (text: string): void => {
    for (const [, hex] of text.matchAll(new RegExp(`${installed.artifacts}/([0-9a-f]{64})`, "g")))
      busy.add(hex ?? "");
  };
  for (const pid of await readdir("/proc")) {
    if (!/^[0-9]+$/.test(pid)) continue;
    note(await readlink(`/proc/${pid}/exe`).catch((error: unknown) => messageOf(error)));
    note(await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => ""));
  }
  // A pod whose processes are gone is stopped and removed by the programs that it was started with.
  note(await podRecords(host));
  return busy;
}

/** What the runtime has written down of its pods: the handler that each was started with is in it. */
export async function podRecords(host: Host): Promise<string> {
  const records = join(paths.state, "records/pods");
  const names = await readdir(host.at(records)).catch(() => []);
  const texts = names.map((name) => readFile(host.at(join(records, name)), "utf8").catch(() => ""));
  return (await Promise.all(texts)).join("\n");
}
