import { age } from "@bulkhead/lib/view/age.ts";
import { isWrong } from "@bulkhead/lib/view/condition.ts";
import type { ProfileDetail, ProfileView } from "@bulkhead/lib/view/profile.ts";
import { type Cell, type Paint, table } from "./table.ts";

/** `kubectl bulkhead status`: the profiles, or one of them node by node. */

const seconds = (value: number | undefined): string => (value === undefined ? "" : `${value}s`);

export const statusTable = (views: ProfileView[], wide: boolean, paint: Paint): string => {
  if (views.length === 0) return "No RuntimeProfiles. kubectl apply one: docs/profiles.md shows how.\n";
  const titles = ["NAME", "WALL", "CLASS", "READY", "PODS", "STATE", "AGE"];
  return table(
    [...titles, ...(wide ? ["ENGINE", "REVISION", "START-P50", "START-P99", "MESSAGE"] : [])],
    views.map((view): Cell[] => [
      { text: view.name, tone: "strong" },
      view.wall,
      view.runtimeClass,
      `${view.nodes.ready}/${view.nodes.desired}`,
      String(view.pods),
      { text: view.state, tone: view.healthy ? "good" : view.nodes.failed > 0 ? "bad" : "warn" },
      age(view.ageMs),
      ...(wide
        ? [
            view.engine,
            view.revision,
            seconds(view.startSeconds?.p50),
            seconds(view.startSeconds?.p99),
            view.message,
          ]
        : []),
    ]),
    paint,
  );
};

export const detailText = (view: ProfileDetail, paint: Paint): string => {
  const { nodes } = view;
  const lines = [
    ["Profile", view.name],
    ["Wall", view.wall],
    ["RuntimeClass", view.runtimeClass],
    ["Engine", view.engine],
    ["Revision", view.revision],
    [
      "Nodes",
      `${nodes.desired} selected, ${nodes.updated} updated, ${nodes.ready} ready, ${nodes.failed} failed`,
    ],
    ["Pods", String(view.pods)],
  ].map(([key = "", value = ""]) => `${paint(key.padEnd(15), "faint")}${value}\n`);
  const conditions = table(
    ["CONDITION", "STATUS", "REASON", "MESSAGE"],
    view.conditions.map((condition) => [
      condition.type,
      { text: condition.status, tone: isWrong(condition) ? "bad" : "good" },
      condition.reason,
      condition.message,
    ]),
    paint,
  );
  const onNodes = table(
    ["NODE", "PHASE", "CANARY", "KERNEL-BEHIND", "PODS", "REVISION", "HEARD", "REASON", "MESSAGE"],
    view.onNodes.map((node) => [
      node.node,
      { text: node.phase, tone: node.phase === "Ready" ? "good" : node.phase === "Failed" ? "bad" : "warn" },
      node.canary,
      node.kernel,
      String(node.pods),
      node.revision,
      node.heartbeatMs === undefined ? "never" : `${age(node.heartbeatMs)} ago`,
      node.reason,
      node.message,
    ]),
    paint,
  );
  return `${lines.join("")}\n${conditions}\n${view.onNodes.length > 0 ? onNodes : "No node has it.\n"}`;
};
