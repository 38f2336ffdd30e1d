import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import { type RuntimeProfile, runtimeClassName } from "@bulkhead/lib/api/runtime-profile.ts";
import { noWall, wallOf } from "@bulkhead/lib/view/wall.ts";
import type { Pod, Seen } from "./cluster.ts";
import { type Cell, type Paint, table } from "./table.ts";

/** `kubectl bulkhead tenants`: which namespace's pods stand behind which wall. */

export type TenantView = {
  namespace: string;
  /** "" for pods that name no RuntimeClass, or one that no profile made. */
  profile: string;
  runtimeClass: string;
  wall: string;
  pods: number;
  /** Of those, on nodes where the profile's canary did not pass last time, or whose agent fell silent since. */
  unproven: number;
};

const lives = (pod: Pod): boolean => pod.status?.phase !== "Succeeded" && pod.status?.phase !== "Failed";

/** Where walls were last seen standing, by agents heard lately: asked of a node and a profile. */
export const proofsOf = (
  { nodeRuntimes, now }: Pick<Seen, "nodeRuntimes" | "now">,
  staleAfterMs = Infinity,
): ((node: string, profile: string) => boolean) => {
  const heard = ({ status }: NodeRuntime): boolean =>
    now - Date.parse(status?.heartbeat ?? "") <= staleAfterMs;
  const proven = new Set(
    nodeRuntimes
      .filter(heard)
      .flatMap((runtime) =>
        (runtime.status?.profiles ?? [])
          .filter((each) => each.canary?.passed === true)
          .map((each) => `${runtime.metadata.name}/${each.name}`),
      ),
  );
  return (node, profile) => proven.has(`${node}/${profile}`);
};

export const tenantsView = (
  seen: Pick<Seen, "profiles" | "pods" | "nodeRuntimes" | "now">,
  staleAfterMs?: number,
): TenantView[] => {
  const byClass = new Map<string, RuntimeProfile>(
    seen.profiles.map((profile) => [runtimeClassName(profile), profile]),
  );
  const isProven = proofsOf(seen, staleAfterMs);
  const views = new Map<string, TenantView>();
  for (const pod of seen.pods) {
    if (!lives(pod)) continue;
    const { namespace = "" } = pod.metadata;
    const runtimeClass = pod.spec?.runtimeClassName ?? "";
    const profile = byClass.get(runtimeClass);
    const key = `${namespace}/${runtimeClass}`;
    const view = views.get(key) ?? {
      namespace,
      profile: profile?.metadata.name ?? "",
      runtimeClass,
      wall: profile ? wallOf(profile) : noWall,
      pods: 0,
      unproven: 0,
    };
    view.pods += 1;
    const { nodeName } = pod.spec ?? {};
    if (profile && nodeName && !isProven(nodeName, profile.metadata.name)) view.unproven += 1;
    views.set(key, view);
  }
  return [...views.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, view]) => view);
};

export const tenantsTable = (views: TenantView[], wide: boolean, paint: Paint): string =>
  views.length === 0
    ? "No pods.\n"
    : table(
        ["NAMESPACE", "WALL", "PROFILE", "PODS", "UNPROVEN", ...(wide ? ["CLASS"] : [])],
        views.map((view): Cell[] => [
          view.namespace,
          view.wall,
          view.profile || "-",
          String(view.pods),
          view.unproven > 0 ? { text: String(view.unproven), tone: "bad" } : "0",
          ...(wide ? [view.runtimeClass || "-"] : []),
        ]),
        paint,
      );
