import { createHash } from "node:crypto";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import {
  type RuntimeProfile,
  type RuntimeProfileSpec,
  revisionedPart,
} from "@bulkhead/lib/api/runtime-profile.ts";
import { canonicalJson } from "@bulkhead/lib/std/canonical-json.ts";

/** The revision of a profile: ten hex digits of a SHA-256. A change of anything else is no new revision. */
export const revisionOf = (spec: RuntimeProfileSpec): string =>
  createHash("sha256")
    .update(canonicalJson(revisionedPart(spec)))
    .digest("hex")
    .slice(0, 10);

/** The entry of NodeRuntime.spec for a profile as it is now. */
export const desiredProfile = ({
  metadata,
  spec,
}: Pick<RuntimeProfile, "metadata" | "spec">): DesiredProfile => {
  const { handler, artifact, engine, probe } = spec;
  return { name: metadata.name, revision: revisionOf(spec), handler, artifact, engine, probe };
};
