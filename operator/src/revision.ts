import { createHash } from "node:crypto";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import type { RuntimeProfile, RuntimeProfileSpec } from "@bulkhead/lib/api/runtime-profile.ts";
import { canonicalJson } from "@bulkhead/lib/std/canonical-json.ts";

/** What of a profile reaches the node: a change of anything else is no new revision. */
const reaching = ({ handler, artifact, engine, probe }: RuntimeProfileSpec) => ({
  handler,
  artifact,
  engine,
  probe,
});

/** The revision of a profile: ten hex digits of the SHA-256 of what reaches the node. */
export const revisionOf = (spec: RuntimeProfileSpec): string =>
  createHash("sha256")
    .update(canonicalJson(reaching(spec)))
    .digest("hex")
    .slice(0, 10);

/** The entry of NodeRuntime.spec for a profile as it is now. */
export const desiredProfile = (profile: Pick<RuntimeProfile, "metadata" | "spec">): DesiredProfile => ({
  name: profile.metadata.name,
  revision: revisionOf(profile.spec),
  ...reaching(profile.spec),
});
