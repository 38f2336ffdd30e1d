import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import type { RuntimeSettings } from "@bulkhead/lib/api/runtime-config.ts";
import type { TracingConfig } from "@bulkhead/lib/tracing/settings.ts";
import type { Logger } from "pino";
import type { BundleCheck, Manifest } from "./bundle.ts";
import { gatherFacts, type HostFacts } from "./facts.ts";
import { handlerFile } from "./files.ts";
import type { Host } from "./host.ts";
import type { Ledger } from "./ledger.ts";
import type { InstallerMetrics } from "./metrics.ts";
import type { Good, Ownership } from "./ownership.ts";
import type { Facts } from "./plan.ts";
import { servesSince } from "./state.ts";
import { type Executors, executors } from "./steps.ts";
import type { Walls } from "./walls.ts";
import type { Wanted } from "./wanted.ts";

/** What every part of the installer works with. */
export type Installer = {
  host: Host;
  hostFacts: HostFacts;
  ownership: Ownership;
  /** The bundle's directory in our own image. */
  bundle: string;
  manifest: Manifest;
  check: BundleCheck;
  metrics: InstallerMetrics;
  log: Logger;
  /** Where our runtime's traces go; no endpoint: nowhere. */
  runtimeTracing: TracingConfig;
  /** What the cluster says of our runtime's configuration, or why it cannot be used. */
  runtimeSettings: { settings: RuntimeSettings } | { problem: string };
  /** Variables that tell our runtime of a proxy. */
  runtimeProxy: Readonly<Record<string, string>>;
  /** The files that it names, as they are now: path → text. */
  runtimeFiles: () => Promise<Record<string, string>>;
  ledger: Ledger;
  walls: Walls;
  wanted: Wanted;
};

/** How steps are done; what happens in them is told of the profile, or of the node. */
export const executorsOf = (
  { host, ownership, bundle, manifest, log, ledger }: Installer,
  profile?: string,
): Executors =>
  executors({
    host,
    ownership,
    bundle,
    manifest,
    log,
    note: (reason, message, type) => ledger.note(reason, message, type, profile),
  });

/** The node as it is, with the files of these profiles and of those that were installed. */
export const factsOf = (
  { host, ownership, manifest, check }: Installer,
  profiles: readonly DesiredProfile[],
  signal: AbortSignal,
): Promise<Facts> => {
  const names = [...profiles.map(({ name }) => name), ...Object.keys(ownership.record.profiles)];
  return gatherFacts(host, ownership, { manifest, check }, names.map(handlerFile), signal);
};

/** What is written down of a profile whose canary has passed just now. */
export const goodOf = ({ hostFacts }: Installer, proven: Omit<Good, "boot">): Good => ({
  ...proven,
  boot: hostFacts.view.bootId,
});

/** The revision that serves whatever is tried; undefined while none is known to since the node booted. */
export const servesNow = (
  { ownership, hostFacts }: Pick<Installer, "ownership" | "hostFacts">,
  profile: string,
): string | undefined => servesSince(ownership.record.profiles[profile], hostFacts.view.bootId);
