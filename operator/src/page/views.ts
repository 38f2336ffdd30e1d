import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import { type Condition, type RuntimeProfile, runtimeClassName } from "@bulkhead/lib/api/runtime-profile.ts";
import type { TenancyStatus } from "@bulkhead/lib/api/tenancy.ts";
import type { Store } from "@bulkhead/lib/kube/store.ts";
import { advice, adviceOn } from "@bulkhead/lib/view/advice.ts";
import { age } from "@bulkhead/lib/view/age.ts";
import { type AgentsView, agentStates } from "@bulkhead/lib/view/agents.ts";
import { isWrong } from "@bulkhead/lib/view/condition.ts";
import { detailView, type NodeView, type ProfileView, statusView } from "@bulkhead/lib/view/profile.ts";
import { wallOf } from "@bulkhead/lib/view/wall.ts";
import { type Html, html } from "./html.ts";

/** The status page, view by view. Pure: what the operator's stores hold becomes markup. */

/** What a view is made of: the stores themselves, which a request looks into and does not copy. */
export type Fleet = {
  now: number;
  staleAfterMs: number;
  profiles: Pick<Store<RuntimeProfile>, "get" | "list">;
  nodeRuntimes: Pick<Store<NodeRuntime>, "get" | "list">;
  /** How Bulkhead's own version stands; undefined where no agents of the chart's are. */
  agents?: AgentsView | undefined;
};

/** A view: what stands in the title, and the page's main part. Undefined when there is nothing of that name. */
export type View = { title: string; main: Html } | undefined;

/** Rows of one page of a long list. */
export const pageSize = 200;

/** Which part of a long list is asked for: rows whose name has `q` in it, from page `page` (from 0). */
export type Asked = { q: string; page: number };

type Tone = "good" | "bad" | "warn" | "idle";
/** Never colour alone: the word stands there, too. */
const badge = (text: string, tone: Tone): Html => html`<span class="badge ${tone}">${text}</span>`;
const link = (kind: "profiles" | "nodes" | "tenants", name: string): Html =>
  html`<a href="/${kind}/${encodeURIComponent(name)}">${name}</a>`;

const table = (caption: string, titles: string[], rows: Html[], empty: string): Html =>
  rows.length === 0
    ? html`<p class="empty">${empty}</p>`
    : html`<div class="scroll"><table>
<caption>${caption}</caption>
<thead><tr>${titles.map((title) => html`<th scope="col">${title}</th>`)}</tr></thead>
<tbody>${rows}</tbody>
</table></div>`;

/** A list that may be long: a search field, one page of rows, and the way to the others. */
const long = <T>(
  all: readonly T[],
  nameOf: (item: T) => string,
  { q, page }: Asked,
  path: string,
  show: (items: readonly T[]) => Html,
): Html => {
  const found = q === "" ? all : all.filter((item) => nameOf(item).includes(q));
  const last = Math.max(0, Math.ceil(found.length / pageSize) - 1);
  const at = Math.min(page, last);
  const to = (number: number, text: string): Html =>
    html`<a href="${path}?${new URLSearchParams({ ...(q ? { q } : {}), page: String(number) }).toString()}">${text}</a>`;
  return html`${
    all.length > pageSize || q !== ""
      ? html`<form method="get" action="${path}" role="search"><label>Name contains <input type="search" name="q" value="${q}"></label> <button>Search</button></form>`
      : undefined
  }${show(found.slice(at * pageSize, (at + 1) * pageSize))}${
    last > 0
      ? html`<nav class="pages" aria-label="Pages">${at > 0 && to(at - 1, "Previous")} <span>Page ${at + 1} of ${last + 1}, ${found.length} in all</span> ${at < last && to(at + 1, "Next")}</nav>`
      : undefined
  }`;
};

/** When an agent was last heard, and that it should have been since. */
const lastHeard = (ms: number | undefined, staleAfterMs: number): Html =>
  ms === undefined
    ? badge("never heard", "bad")
    : ms > staleAfterMs
      ? badge(`silent for ${age(ms)}`, "bad")
      : html`${age(ms)} ago`;

const heartbeatMs = ({ now }: Fleet, { status }: NodeRuntime): number | undefined =>
  status?.heartbeat === undefined ? undefined : now - Date.parse(status.heartbeat);

const toneOf = (view: ProfileView): Tone => (view.healthy ? "good" : view.nodes.failed > 0 ? "bad" : "warn");

/** How far the newest revision has come, as a bar that a screen reader reads as a number. */
const progress = ({ nodes }: ProfileView): Html =>
  html`<progress max="${Math.max(1, nodes.desired)}" value="${nodes.ready}" aria-label="${nodes.ready} of ${nodes.desired} nodes ready"></progress> ${nodes.ready}/${nodes.desired}`;

const agentTones = {
  ready: "good",
  updating: "warn",
  waiting: "idle",
  failed: "bad",
  unreachable: "warn",
} as const;

/** Bulkhead's own version on its way over the nodes. */
const ownVersion = ({ version, reason, message, nodes, count }: AgentsView): Html =>
  html`<h2>Bulkhead's own version <code>${version}</code> ${badge(reason, reason === "RolledOut" ? "good" : reason === "FailureThreshold" || reason === "InvalidSpec" ? "bad" : "warn")}</h2>
<p>${message}</p>
<ol class="steps">${agentStates.map((state) => html`<li class="${count[state] > 0 ? agentTones[state] : "idle"}"><b>${count[state]}</b> ${state}</li>`)}</ol>
${
  count.failed > 0
    ? html`<ul class="failed">${nodes
        .filter(({ state }) => state === "failed")
        .slice(0, 20)
        .map(
          (node) =>
            html`<li>${link("nodes", node.name)} ${badge(node.reason, "bad")} ${node.message}<br>What to do: ${adviceOn(node.reason)}</li>`,
        )}</ul>`
    : undefined
}`;

/** The fleet: every profile, and every node with how its profiles stand. */
export const fleetView = (fleet: Fleet, asked: Asked): View => {
  const profiles = statusView({ profiles: fleet.profiles.list(), now: fleet.now });
  const nodeRow = (runtime: NodeRuntime): Html => {
    const { status } = runtime;
    return html`<tr><th scope="row">${link("nodes", runtime.metadata.name)}</th>
<td>${status?.engine ? `${status.engine.name} ${status.engine.version}` : ""}${status?.engine?.fronted ? " behind Bulkhead" : ""}</td>
<td>${(status?.profiles ?? []).map((each) => html`${badge(`${each.name} ${each.phase}`, each.phase === "Ready" ? "good" : each.phase === "Failed" || each.phase === "RolledBack" ? "bad" : "warn")} `)}</td>
<td>${lastHeard(heartbeatMs(fleet, runtime), fleet.staleAfterMs)}</td></tr>`;
  };
  const names = Array.from(fleet.nodeRuntimes.list(), ({ metadata }) => metadata.name).sort();
  return {
    title: "Fleet",
    main: html`<h1>Fleet</h1>
${table(
  "Profiles",
  ["Profile", "Wall", "State", "Nodes ready", "Pods", "Revision", "What it says"],
  profiles.map(
    (view) =>
      html`<tr><th scope="row">${link("profiles", view.name)}</th><td>${view.wall}</td><td>${badge(view.state, toneOf(view))}</td><td>${progress(view)}</td><td>${view.pods}</td><td><code>${view.revision}</code></td><td>${view.message}</td></tr>`,
  ),
  "No RuntimeProfile yet: kubectl apply one.",
)}
${fleet.agents && ownVersion(fleet.agents)}
<h2>Nodes</h2>
${long(
  names,
  (name) => name,
  asked,
  "/",
  (some) =>
    table(
      "Nodes",
      ["Node", "Engine", "Profiles", "Last heard"],
      some.flatMap((name) => {
        const runtime = fleet.nodeRuntimes.get(name);
        return runtime ? [nodeRow(runtime)] : [];
      }),
      "No node has a profile yet.",
    ),
)}`,
  };
};

const conditionTone = (condition: Condition): Tone =>
  isWrong(condition)
    ? "bad"
    : condition.type === "Progressing" || condition.reason === "Audit"
      ? "idle"
      : "good";

const conditions = (all: readonly Condition[], now: number): Html =>
  table(
    "Conditions",
    ["Condition", "Status", "Reason", "Since", "Message", "What to do"],
    all.map(
      (each) =>
        html`<tr><th scope="row">${each.type}</th><td>${badge(each.status, conditionTone(each))}</td><td>${each.reason}</td><td>${age(now - Date.parse(each.lastTransitionTime))}</td><td>${each.message}</td><td>${advice[each.reason]}</td></tr>`,
    ),
    "No condition yet.",
  );

/** The stages of a rollout with how many nodes stand in each. */
const rollout = (nodes: NodeView[], target: string): Html => {
  const count = (holds: (node: NodeView) => boolean): number => nodes.filter(holds).length;
  const there = (node: NodeView): boolean => node.revision === target;
  const failed = (node: NodeView): boolean => node.phase === "Failed" || node.phase === "RolledBack";
  const steps: [string, number, Tone][] = [
    ["Waiting", count((node) => !there(node) && node.phase === "Ready"), "idle"],
    ["Updating", count((node) => !failed(node) && node.phase !== "Ready"), "warn"],
    ["Failed", count(failed), "bad"],
    ["Ready", count((node) => there(node) && node.phase === "Ready"), "good"],
  ];
  return html`<h2>Rollout of revision <code>${target}</code></h2>
<ol class="steps">${steps.map(([name, number, tone]) => html`<li class="${number > 0 ? tone : "idle"}"><b>${number}</b> ${name}</li>`)}</ol>`;
};

type Outside = NonNullable<TenancyStatus["outside"]>[number] & { profile: string };

/** Namespaces with pods outside the walls of these profiles, as far as their statuses name them: twenty of each. */
const outsideOf = (profiles: Iterable<RuntimeProfile>): Outside[] =>
  [...profiles]
    .flatMap(({ metadata, status }) =>
      (status?.tenancy?.outside ?? []).map((each) => ({ ...each, profile: metadata.name })),
    )
    .sort((one, other) => other.pods - one.pods || (one.namespace < other.namespace ? -1 : 1));

const outsideTable = (rows: readonly Outside[]): Html | undefined =>
  rows.length === 0
    ? undefined
    : html`<h2>Outside their wall</h2>
<p>What to do: ${adviceOn("PodsOutside")}</p>
${table(
  "Pods outside their wall",
  ["Namespace", "Profile", "Pods outside", "Such as", "What is weak"],
  rows.map(
    (row) =>
      html`<tr><th scope="row">${link("tenants", row.namespace)}</th><td>${link("profiles", row.profile)}</td><td>${badge(String(row.pods), "bad")}</td><td>${row.example}</td><td>${row.reason}</td></tr>`,
  ),
  "",
)}`;

/** Whose pods stand behind the profile, where it says so itself. */
const tenancyOf = ({ spec, status }: RuntimeProfile): Html | undefined =>
  spec.tenancy &&
  html`<dt>Tenancy</dt><dd>${spec.tenancy.mode}: ${status?.tenancy?.namespaces ?? 0} namespaces, ${status?.tenancy?.podsOutside ?? 0} pods outside</dd>`;

/** A profile: its conditions, its rollout, its nodes and what to do about those that failed. */
export const profilePage = (fleet: Fleet, name: string, asked: Asked): View => {
  const profile = fleet.profiles.get(name);
  if (!profile) return undefined;
  const view = detailView(profile, { nodeRuntimes: fleet.nodeRuntimes.list(), now: fleet.now });
  const failed = profile.status?.failedNodes ?? [];
  return {
    title: name,
    main: html`<h1>${name} ${badge(view.state, toneOf(view))}</h1>
<p>${view.message}</p>
<dl><dt>Wall</dt><dd>${view.wall}</dd><dt>RuntimeClass</dt><dd><code>${runtimeClassName(profile)}</code></dd><dt>Engine</dt><dd>${view.engine}</dd><dt>Nodes ready</dt><dd>${progress(view)}</dd><dt>Pods</dt><dd>${view.pods}</dd>${tenancyOf(profile)}</dl>
${outsideTable(outsideOf([profile]))}
${rollout(view.onNodes, view.revision)}
${failed.length > 0 ? html`<h2>Failed nodes</h2><ul class="failed">${failed.map((node) => html`<li>${link("nodes", node.name)} ${badge(node.reason, "bad")} ${node.message}<br>What to do: ${adviceOn(node.reason)}</li>`)}</ul>` : undefined}
<h2>Conditions</h2>
${conditions(view.conditions, fleet.now)}
<h2>Nodes</h2>
${long(
  view.onNodes,
  (node) => node.node,
  asked,
  `/profiles/${encodeURIComponent(name)}`,
  (some) =>
    table(
      "Nodes of the profile",
      ["Node", "Phase", "Canary", "Kernel behind the wall", "Pods", "Revision", "Last heard", "Reason"],
      some.map(
        (node) =>
          html`<tr><th scope="row">${link("nodes", node.node)}</th><td>${badge(node.phase, node.phase === "Ready" ? "good" : node.phase === "Failed" ? "bad" : "warn")}</td><td>${node.canary}</td><td>${node.kernel}</td><td>${node.pods}</td><td><code>${node.revision}</code></td><td>${lastHeard(node.heartbeatMs, fleet.staleAfterMs)}</td><td>${node.reason}${node.message && `: ${node.message}`}</td></tr>`,
      ),
      "No node has it.",
    ),
)}`,
  };
};

/** A node's story: what serves it, what each profile came to there, why, and what to do. */
export const nodePage = (fleet: Fleet, name: string): View => {
  const runtime = fleet.nodeRuntimes.get(name);
  if (!runtime) return undefined;
  const { status, spec } = runtime;
  const heard = status?.heartbeat ? fleet.now - Date.parse(status.heartbeat) : undefined;
  const engine = status?.engine;
  const facts: [string, string | undefined][] = [
    ["Last heard", heard === undefined ? "never" : `${age(heard)} ago`],
    [
      "Engine",
      engine &&
        `${engine.name} ${engine.version} at ${engine.socket}${engine.fronted ? ", behind Bulkhead" : ""}`,
    ],
    ["Kernel", status?.kernel],
    ["Architecture", status?.arch],
    ["Control groups", status?.cgroup],
    ["KVM", status?.kvm === undefined ? undefined : status.kvm ? "usable" : "not usable"],
    ["Agent", status?.agentVersion],
    ["Runtime", status?.runtimeVersion],
  ];
  const wanted = spec.profiles.filter((entry) => !status?.profiles?.some((each) => each.name === entry.name));
  return {
    title: name,
    main: html`<h1>${name}</h1>
${heard === undefined || heard > fleet.staleAfterMs ? html`<p>${badge("AgentSilent", "bad")} What to do: ${adviceOn("AgentSilent")}</p>` : undefined}
<dl>${facts.flatMap(([key, value]) => (value ? [html`<dt>${key}</dt><dd>${value}</dd>`] : []))}</dl>
<h2>Profiles</h2>
${(status?.profiles ?? []).map(
  (
    each,
  ) => html`<section class="story"><h3>${link("profiles", each.name)} ${badge(each.phase, each.phase === "Ready" ? "good" : each.phase === "Failed" || each.phase === "RolledBack" ? "bad" : "warn")}</h3>
<p>${each.reason}${each.message && `: ${each.message}`}</p>
${each.phase === "Failed" || each.phase === "RolledBack" ? html`<p>What to do: ${adviceOn(each.reason)}</p>` : undefined}
<dl><dt>Serves revision</dt><dd><code>${each.revision || "none"}</code></dd>${each.attemptedRevision ? html`<dt>Tried last</dt><dd><code>${each.attemptedRevision}</code></dd>` : undefined}${
    each.canary
      ? html`<dt>Canary</dt><dd>${each.canary.passed ? "passed" : "failed"} ${age(fleet.now - Date.parse(each.canary.at))} ago, started in ${each.canary.startSeconds} s, saw kernel ${each.canary.kernel}</dd><dt>Asserted</dt><dd>${each.canary.assertions.join(", ")}</dd>`
      : undefined
  }${each.startSeconds ? html`<dt>Start</dt><dd>${each.startSeconds.p50} s (p50), ${each.startSeconds.p99} s (p99)</dd>` : undefined}</dl>
${Object.keys(each.pods ?? {}).length > 0 ? html`<p>Pods: ${Object.entries(each.pods ?? {}).map(([namespace, count]) => html`${link("tenants", namespace)} ${count} `)}</p>` : undefined}</section>`,
)}
${wanted.map((entry) => html`<section class="story"><h3>${link("profiles", entry.name)} ${badge("Pending", "warn")}</h3><p>The agent has not reported on it yet.</p></section>`)}
${(status?.profiles ?? []).length + wanted.length === 0 ? html`<p class="empty">No profile selects this node.</p>` : undefined}
<h2>Conditions</h2>
${conditions(status?.conditions ?? [], fleet.now)}`,
  };
};

type TenantRow = {
  namespace: string;
  profile: RuntimeProfile;
  pods: number;
  nodes: string[];
  unproven: number;
};

/** Namespaces by profile, from what the agents report of pods on their nodes. */
const tenantRows = (fleet: Fleet): TenantRow[] => {
  const rows = new Map<string, TenantRow>();
  for (const runtime of fleet.nodeRuntimes.list()) {
    // What a silent agent said last proves nothing of now.
    const silent = (heartbeatMs(fleet, runtime) ?? Infinity) > fleet.staleAfterMs;
    for (const reported of runtime.status?.profiles ?? []) {
      const profile = fleet.profiles.get(reported.name);
      if (!profile) continue;
      for (const [namespace, count] of Object.entries(reported.pods ?? {})) {
        const key = `${namespace}/${reported.name}`;
        const row = rows.get(key) ?? { namespace, profile, pods: 0, nodes: [], unproven: 0 };
        row.pods += count;
        row.nodes.push(runtime.metadata.name);
        if (silent || reported.canary?.passed !== true) row.unproven += count;
        rows.set(key, row);
      }
    }
  }
  return [...rows.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, row]) => row);
};

const proof = ({ unproven }: TenantRow): Html =>
  unproven > 0 ? badge(`${unproven} not proven`, "bad") : badge("proven", "good");

/** Every tenant with its walls. */
export const tenantsPage = (fleet: Fleet, asked: Asked): View => ({
  title: "Tenants",
  main: html`<h1>Tenants</h1>
${outsideTable(outsideOf(fleet.profiles.list()))}
<h2>Behind a wall</h2>
<p>Namespaces with pods behind a wall, as the agents report them.</p>
${long(
  tenantRows(fleet),
  (row) => row.namespace,
  asked,
  "/tenants",
  (some) =>
    table(
      "Tenants by wall",
      ["Namespace", "Profile", "Wall", "Pods", "Proof"],
      some.map(
        (row) =>
          html`<tr><th scope="row">${link("tenants", row.namespace)}</th><td>${link("profiles", row.profile.metadata.name)}</td><td>${wallOf(row.profile)}</td><td>${row.pods}</td><td>${proof(row)}</td></tr>`,
      ),
      "No pod runs behind a wall yet.",
    ),
)}`,
});

/** One tenant: behind which walls its pods are, and on which nodes. */
export const tenantPage = (fleet: Fleet, namespace: string): View => {
  const rows = tenantRows(fleet).filter((row) => row.namespace === namespace);
  const outside = outsideOf(fleet.profiles.list()).filter((row) => row.namespace === namespace);
  if (rows.length + outside.length === 0) return undefined;
  return {
    title: namespace,
    main: html`<h1>${namespace}</h1>
${outsideTable(outside)}
${rows.map(
  (row) => html`<section class="story"><h2>${wallOf(row.profile)}</h2>
<dl><dt>Profile</dt><dd>${link("profiles", row.profile.metadata.name)}</dd><dt>Pods</dt><dd>${row.pods}</dd><dt>Proof</dt><dd>${proof(row)}</dd>
<dt>Nodes</dt><dd>${row.nodes.slice(0, 50).map((node) => html`${link("nodes", node)} `)}${row.nodes.length > 50 && `and ${row.nodes.length - 50} more`}</dd></dl></section>`,
)}`,
  };
};
