import { createHash } from "node:crypto";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import type { ArtifactRecord } from "../ownership.ts";

/** What is to be done about the artifacts of a node. Pure. */

/** What a profile wants of an artifact. */
export type Wanted = {
  /** Hexadecimal digits of the digest: the name of its directory and its key in the record. */
  hex: string;
  image: string;
  /** Public keys in PEM, one of which must have signed it. */
  keys: readonly string[];
  identity: "repository" | "any";
  /** Hash of keys and identity; undefined when the digest is all that is asked. */
  policy: string | undefined;
  repair: boolean;
};

/** The artifact of a profile; undefined for one of the bundle. */
export function wantedBy({ artifact }: Pick<DesiredProfile, "artifact">): Wanted | undefined {
  const { image, verify, repair = false } = artifact;
  if (image === undefined) return undefined;
  const { publicKeys: keys, identity } = verify?.cosign ?? {
    publicKeys: [],
    identity: "repository" as const,
  };
  const policy = createHash("sha256")
    .update(JSON.stringify([keys.toSorted(), identity]))
    .digest("hex");
  return {
    hex: image.slice(image.indexOf("@sha256:") + "@sha256:".length),
    image,
    keys,
    identity,
    policy: keys.length === 0 ? undefined : policy,
    repair,
  };
}

/** An artifact as it was found. */
export type Found = {
  record: ArtifactRecord;
  /** Files that are not as its list says, or that it does not list. */
  changed: readonly string[];
};

/** What comes next for what a profile wants: nothing, or one of the long works that go on beside all else. */
export type Next = "nothing" | "fetch" | "verify";

export function nextOf(found: Found | undefined, { policy }: Wanted): Next {
  if (found === undefined || found.record.list === null) return "fetch";
  return policy === undefined || found.record.policies.includes(policy) ? "nothing" : "verify";
}

/** Whether an artifact is to be fetched anew in the place of what was changed of it. */
export const needsRepair = ({ record, changed }: Found): boolean =>
  record.repair && record.list !== null && changed.length > 0;

/**
 * The artifacts of which nothing is left that needs them. `referred`: all texts by which files of ours lead to programs.
 * `busy`: those of which a process or a pod's record knows.
 */
export const unused = (
  there: Iterable<string>,
  wanted: ReadonlySet<string>,
  referred: string,
  busy: ReadonlySet<string>,
): string[] => [...there].filter((hex) => !wanted.has(hex) && !busy.has(hex) && !referred.includes(hex));
