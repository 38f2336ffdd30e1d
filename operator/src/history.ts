import { apiVersion, labels } from "@bulkhead/lib/api/group.ts";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import {
  type RuntimeProfile,
  type RuntimeProfileStatus,
  revisionedPart,
} from "@bulkhead/lib/api/runtime-profile.ts";
import type { ControllerRevision } from "@bulkhead/lib/kube/resources.ts";
import { type ProfileFacts, tooManyFailed } from "./facts.ts";
import { revisionOf } from "./revision.ts";
import { managedBy } from "./runtime-class.ts";

/**
 * The revisions that a profile had, kept as a DaemonSet keeps its own: one ControllerRevision each, with all that
 * reaches a node. The highest number is the spec's now; going back to an earlier one gives it a new number.
 */

export type HistoryStep =
  | { do: "record"; revision: ControllerRevision }
  | { do: "renumber"; name: string; number: number }
  | { do: "forget"; revision: ControllerRevision };

const nameOf = (profile: string, hash: string): string => `${profile}-${hash}`;

const record = (
  { metadata, spec }: RuntimeProfile,
  number: number,
  namespace: string,
): ControllerRevision => {
  const { name, uid } = metadata;
  return {
    metadata: {
      name: nameOf(name, revisionOf(spec)),
      namespace,
      labels: { [labels.managedBy]: managedBy, [labels.profile]: name },
      ...(uid ? { ownerReferences: [{ apiVersion, kind: "RuntimeProfile", name, uid }] } : {}),
    },
    revision: number,
    data: revisionedPart(spec),
  };
};

/** A profile of the same name that is gone had its own: they are not this one's to go back to. */
const isOwn = ({ uid }: RuntimeProfile["metadata"], { metadata }: ControllerRevision): boolean =>
  metadata.ownerReferences?.some((owner) => owner.uid === uid) ?? false;

const forget = (revision: ControllerRevision): HistoryStep => ({ do: "forget", revision });

/** The end of a profile's history. */
export const forgetHistory = ({ revisions }: ProfileFacts): HistoryStep[] => revisions.map(forget);

/** What is to be done so that the spec's revision is the newest, and no more are kept than the profile says. */
export const planHistory = (
  facts: ProfileFacts,
  target: DesiredProfile,
  namespace: string,
): HistoryStep[] => {
  const { profile } = facts;
  const { name, deletionTimestamp } = profile.metadata;
  const revisions = facts.revisions.filter((revision) => isOwn(profile.metadata, revision));
  if (facts.invalid !== undefined || deletionTimestamp) return [];
  const own = nameOf(name, target.revision);
  const newest = Math.max(0, ...revisions.map(({ revision }) => revision));
  const current = revisions.find(({ metadata }) => metadata.name === own);
  const needed = new Set(
    [
      target.revision,
      profile.status?.currentRevision,
      ...new Set(facts.nodes.flatMap(({ assigned, reported }) => [assigned?.revision, reported?.revision])),
    ].map((hash) => nameOf(name, hash ?? "")),
  );
  const old = revisions
    .filter(({ metadata }) => !needed.has(metadata.name))
    .sort((one, other) => other.revision - one.revision);
  return [
    ...facts.revisions.filter((revision) => !isOwn(profile.metadata, revision)).map(forget),
    ...(current === undefined
      ? [{ do: "record", revision: record(profile, newest + 1, namespace) } as const]
      : current.revision < newest
        ? [{ do: "renumber", name: own, number: newest + 1 } as const]
        : []),
    ...old.slice(profile.spec.rollout.revisionHistoryLimit).map(forget),
  ];
};

const recorded = ({ profile, revisions }: ProfileFacts, hash: string): DesiredProfile | undefined => {
  const { name } = profile.metadata;
  const found = revisions.find(({ metadata }) => metadata.name === nameOf(name, hash));
  if (!found || !isOwn(profile.metadata, found)) return undefined;
  const { restartedAt: _, ...data } = found.data;
  return { ...data, name, revision: hash };
};

/** The last revision that was on every node, as far as there was one and it is kept. */
export const lastGood = (facts: ProfileFacts): DesiredProfile | undefined => {
  const hash = facts.profile.status?.currentRevision;
  return hash === undefined ? undefined : recorded(facts, hash);
};

type RolledBack = NonNullable<RuntimeProfileStatus["rolledBack"]>;

/**
 * What nodes shall hold: the spec's revision, or the last that was on every node once too many failed the spec's. Then
 * that stays until the spec changes: trying the same again would take the same nodes down again.
 */
export const effectiveRevision = (
  facts: ProfileFacts,
  target: DesiredProfile,
): { target: DesiredProfile; rolledBack?: RolledBack } => {
  const { profile } = facts;
  const { generation = 0 } = profile.metadata;
  const before = profile.status?.rolledBack;
  if (before?.revision === target.revision && before.generation === generation) {
    const good = recorded(facts, before.to);
    if (good) return { target: good, rolledBack: before };
  }
  const { onFailure, paused } = profile.spec.rollout;
  const failed = tooManyFailed(facts, target.revision);
  const good = lastGood(facts);
  if (onFailure !== "Rollback" || paused || !failed || !good || good.revision === target.revision) {
    return { target };
  }
  const message = failed.map((node) => `${node.name}: ${node.reported?.reason}`).join(", ");
  return {
    target: good,
    rolledBack: {
      revision: target.revision,
      to: good.revision,
      generation,
      message: message.slice(0, 512),
    },
  };
};
