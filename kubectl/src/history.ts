import { labels } from "@bulkhead/lib/api/group.ts";
import { handlerKind, type RuntimeProfile, revisionedPart } from "@bulkhead/lib/api/runtime-profile.ts";
import type { Client } from "@bulkhead/lib/kube/client.ts";
import {
  type ControllerRevision,
  controllerRevisions,
  runtimeProfiles,
} from "@bulkhead/lib/kube/resources.ts";
import { sameJson } from "@bulkhead/lib/std/canonical-json.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { listAll } from "./cluster.ts";
import { type Cell, type Paint, table } from "./table.ts";

/** `kubectl bulkhead rollout history` and `undo`: what a profile was, and back to it, as kubectl does for a DaemonSet. */

export type RevisionView = {
  revision: number;
  /** The hash that nodes know it by. */
  hash: string;
  handler: string;
  created: string;
  /** The spec is this one now. */
  current: boolean;
  data: ControllerRevision["data"];
};

/** The revisions of a profile, the newest last. */
export const historyView = (profile: RuntimeProfile, revisions: ControllerRevision[]): RevisionView[] =>
  revisions
    .map(({ metadata, revision, data }) => ({
      revision,
      hash: metadata.name.slice(profile.metadata.name.length + 1),
      handler: handlerKind(data),
      created: metadata.creationTimestamp ?? "",
      current: sameJson(data, revisionedPart(profile.spec)),
      data,
    }))
    .sort((one, other) => one.revision - other.revision);

export const historyTable = (views: RevisionView[], paint: Paint): string =>
  views.length === 0
    ? "No revisions are kept.\n"
    : table(
        ["REVISION", "HASH", "HANDLER", "CREATED", "CURRENT"],
        views.map((view): Cell[] => [
          String(view.revision),
          view.hash,
          view.handler,
          view.created,
          view.current ? "yes" : "",
        ]),
        paint,
      );

export const readHistory = async (
  client: Client,
  name: string,
  namespace: string,
): Promise<RevisionView[]> => {
  const [profile, revisions] = await Promise.all([
    client.get(runtimeProfiles, name),
    listAll(client, controllerRevisions, { namespace, labelSelector: `${labels.profile}=${name}` }),
  ]);
  return historyView(profile, revisions);
};

/** The merge patch (RFC 7386) that makes `to` of `from`: what `to` lacks is null. */
export const mergePatchTo = (from: unknown, to: unknown): unknown => {
  const isMap = (value: unknown): value is Record<string, unknown> =>
    typeof value === "object" && value !== null && !Array.isArray(value);
  if (!isMap(from) || !isMap(to)) return to;
  return {
    ...Object.fromEntries(Object.keys(from).map((key) => [key, null])),
    ...Object.fromEntries(Object.entries(to).map(([key, value]) => [key, mergePatchTo(from[key], value)])),
  };
};

/** Puts an earlier revision into the profile's spec: the one of that number, or the newest that the spec is not now. */
export const undo = async (
  client: Client,
  name: string,
  namespace: string,
  revision?: number,
): Promise<RevisionView> => {
  const views = await readHistory(client, name, namespace);
  const to =
    revision === undefined
      ? views.findLast((view) => !view.current)
      : views.find((view) => view.revision === revision);
  if (to === undefined)
    throw new RuntimeError(
      "not-found",
      `Cannot undo "${name}": ${revision === undefined ? "no earlier revision" : `no revision ${revision}`} is kept (kubectl bulkhead rollout history ${name})`,
    );
  if (to.current) return to;
  const { metadata, spec } = await client.get(runtimeProfiles, name);
  const { restartedAt: _, ...from } = revisionedPart(spec);
  const { restartedAt = null, ...data } = to.data;
  await client.patch(
    runtimeProfiles,
    name,
    {
      metadata: { resourceVersion: metadata.resourceVersion },
      spec: { ...(mergePatchTo(from, data) as object), rollout: { restartedAt } },
    },
    { fieldManager: "kubectl-bulkhead" },
  );
  return to;
};
