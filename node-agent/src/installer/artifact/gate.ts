import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { type Installer, servesNow } from "../context.ts";
import type { Artifacts } from "./artifacts.ts";

/**
 * Whether a profile's artifact is there, whole and unchanged. Where it is not, the profile's state says so. `arrived`
 * is called where the profile was waiting for it: no other pause counts then.
 */
export function hasArtifact(
  installer: Pick<Installer, "ledger" | "metrics" | "ownership" | "hostFacts">,
  artifacts: Artifacts,
  profile: DesiredProfile,
  arrived: () => void,
): boolean {
  const { ledger, metrics, ownership } = installer;
  const { name, revision } = profile;
  const artifact = artifacts.stateOf(profile);
  const state = ledger.states.get(name);
  const shown = state !== undefined && "reason" in state ? state : undefined;
  if (artifact.is === "there") {
    if (shown?.reason.startsWith("Artifact") === true) arrived();
    return true;
  }
  if (artifact.is === "on-its-way") {
    ledger.apply(name, { on: "installing" });
    return false;
  }
  const reason = artifact.is === "failed" ? "ArtifactFailed" : "ArtifactChanged";
  const { message } = artifact;
  if (shown?.reason === reason && shown.message === message) return false;
  const good = ownership.record.profiles[name]?.revision;
  if (good === undefined || good === revision) {
    ledger.fail(name, reason, message, undefined, good === revision);
  } else {
    // Nothing of the new revision came to the node: the last one serves as it did.
    ledger.apply(name, { on: "rolled-back", good: servesNow(installer, name) ?? "", reason, message });
    ledger.note(reason, message, "Warning", name);
  }
  metrics.ready.set({ profile: name }, 0);
  return false;
}
