import type { RuntimeProfile, RuntimeProfileStatus } from "@bulkhead/lib/api/runtime-profile.ts";
import type { NodeFacts, ProfileFacts } from "./facts.ts";

/** Memory that a pod takes beside its containers: what canaries took of it, and what the RuntimeClass says. */
type Overhead = NonNullable<RuntimeProfileStatus["overheadMemory"]>;

const mebi = 2 ** 20;

/** A class that says `measured` moves by as much at a time: a canary that takes a little more than the last moves nothing. */
const step = 16;

/** The dearest canary of the fleet, in MiB; 0 where none was measured. */
const dearest = (nodes: NodeFacts[]): number =>
  nodes
    .filter((node) => node.selected && node.reported?.canary?.passed === true)
    .reduce((most, node) => Math.max(most, node.reported?.canary?.overheadBytes ?? 0), 0) / mebi;

const mebibytes = (quantity: string | undefined): number => Number.parseInt(quantity ?? "", 10) || 0;

/** The profile leaves it to the canaries. */
const isMeasured = ({ spec }: RuntimeProfile): boolean => spec.runtimeClass.overhead?.memory === "measured";

/**
 * What the RuntimeClass declares, in MiB: whole steps above the dearest canary, and never less than before while the same
 * revision is what all nodes have. So it rises with the first canary of a dearer revision, and falls when the last node
 * has a cheaper one.
 */
const declaredMebibytes = ({ profile, nodes }: Pick<ProfileFacts, "profile" | "nodes">): number => {
  const { overheadMemory: before, currentRevision = "" } = profile.status ?? {};
  const held = before?.revision === currentRevision ? mebibytes(before.declared) : 0;
  return Math.max(held, Math.ceil(dearest(nodes) / step) * step);
};

/** The memory that the profile's RuntimeClass declares; undefined while it declares none. */
export const declaredMemory = (facts: Pick<ProfileFacts, "profile" | "nodes">): string | undefined => {
  if (!isMeasured(facts.profile)) return facts.profile.spec.runtimeClass.overhead?.memory;
  const declared = declaredMebibytes(facts);
  return declared === 0 ? undefined : `${declared}Mi`;
};

/** What the status tells. What was measured before stays while it is right to a tenth. */
export const overheadMemory = (facts: Pick<ProfileFacts, "profile" | "nodes">): Overhead | undefined => {
  const { overheadMemory: before, currentRevision = "" } = facts.profile.status ?? {};
  const most = dearest(facts.nodes);
  const declared = declaredMemory(facts);
  const measured = isMeasured(facts.profile);
  if (most === 0 && !(measured && declared !== undefined)) return undefined;
  const known = mebibytes(before?.measured);
  const stays = known > 0 && (most === 0 || Math.abs(most - known) <= Math.max(1, known / 10));
  return {
    declared: declared ?? "0",
    measured: `${stays ? known : Math.ceil(most)}Mi`,
    ...(measured ? { revision: currentRevision } : {}),
  };
};
