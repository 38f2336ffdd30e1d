import { fieldManager, labels } from "@bulkhead/lib/api/group.ts";
import { runtimeClassName } from "@bulkhead/lib/api/runtime-profile.ts";
import type { Client } from "@bulkhead/lib/kube/client.ts";
import type { EventRecorder } from "@bulkhead/lib/kube/events.ts";
import { leases } from "@bulkhead/lib/kube/lease.ts";
import { queueMetrics } from "@bulkhead/lib/kube/metrics.ts";
import type { KubeObject, Resource } from "@bulkhead/lib/kube/object.ts";
import { createReflector, type Reflector, type ReflectorOptions } from "@bulkhead/lib/kube/reflector.ts";
import {
  agentPods,
  agentSelector,
  controllerRevisions,
  daemonSets,
  mutatingBindings,
  mutatingPolicies,
  namespaces,
  nodeRuntimes,
  nodes,
  pods,
  runtimeClasses,
  runtimeProfiles,
  templateRevisions,
  validatingBindings,
  validatingPolicies,
} from "@bulkhead/lib/kube/resources.ts";
import { createQueue } from "@bulkhead/lib/kube/workqueue.ts";
import { sameJson } from "@bulkhead/lib/std/canonical-json.ts";
import { type Clock, systemClock } from "@bulkhead/lib/std/clock.ts";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { rootSpan } from "@bulkhead/lib/tracing/span.ts";
import { agentsView } from "@bulkhead/lib/view/agents.ts";
import { asHeard, heardOf } from "@bulkhead/lib/view/sign-of-life.ts";
import type { Logger } from "pino";
import type { Registry } from "prom-client";
import { createAgentsRollout } from "./agents/roll.ts";
import { byNamespace, byRuntimeClass } from "./gather.ts";
import { createLatest } from "./latest.ts";
import { fleetMetrics, profileMetrics } from "./metrics.ts";
import { createNodeIndex } from "./node-index.ts";
import { createPace } from "./pace.ts";
import type { Fleet } from "./page/views.ts";
import type { Decisions } from "./plan.ts";
import { type Context, reconcileNode, reconcileProfile } from "./reconcile.ts";
import { managedBy } from "./runtime-class.ts";
import { slimAgentPod, slimLease, slimNode, slimPods, slimRuntimes } from "./slim.ts";
import { profileOf } from "./tenancy/policies.ts";
import type { WatchedPod } from "./tenancy/rules.ts";
import { selects } from "./tenancy/selector.ts";

export type ControllerOptions = {
  client: Client;
  recorder: EventRecorder;
  registry: Registry;
  log: Logger;
  clock?: Clock;
  /** An agent silent for longer is not believed any more. */
  staleAfterMs?: number;
  /** Where the operator and the agents run, and histories are kept: no profile's tenancy takes that namespace in. */
  namespace: string;
};

export type Controller = {
  /** Keeps the stores: a standby has them warm. Ends when the signal aborts. */
  watch(signal: AbortSignal): Promise<void>;
  /** Names of resources that were not listed yet. */
  missing(): string[];
  /** What the stores hold now, for the status page; a standby has it, too. */
  fleet(): Fleet;
  /** Reconciles until the signal aborts: the leader's work. */
  work(signal: AbortSignal): Promise<void>;
};

/** Namespaces of the system's own; Bulkhead's is added. Nothing of a tenant is there. */
const systemNamespaces = ["kube-system", "kube-public", "kube-node-lease"];

export const createController = (options: ControllerOptions): Controller => {
  const { client, recorder, registry, log, clock = systemClock, staleAfterMs = 180_000 } = options;
  const follow = <T extends KubeObject>(resource: Resource<T>, more: Partial<ReflectorOptions<T>> = {}) =>
    createReflector<T>({ client, resource, log, clock, ...more });
  const slimRuntime = slimRuntimes();
  const reflectors = {
    profiles: follow(runtimeProfiles),
    nodeRuntimes: follow(nodeRuntimes, { transform: slimRuntime, pageSize: 100 }),
    nodes: follow(nodes, { transform: slimNode }),
    leases: follow(leases, {
      transform: slimLease,
      namespace: options.namespace,
      labelSelector: `${labels.managedBy}=${fieldManager.agent}`,
    }),
    runtimeClasses: follow(runtimeClasses),
    pods: follow<WatchedPod>(pods, {
      transform: slimPods(),
      indexes: {
        [byRuntimeClass]: ({ spec }) => spec?.runtimeClassName,
        [byNamespace]: ({ metadata }) => metadata.namespace,
      },
    }),
    namespaces: follow(namespaces, { transform: slimNode }),
    validatingPolicies: follow(validatingPolicies),
    validatingBindings: follow(validatingBindings),
    mutatingPolicies: follow(mutatingPolicies, { optional: true }),
    mutatingBindings: follow(mutatingBindings, { optional: true }),
    controllerRevisions: follow(controllerRevisions, {
      namespace: options.namespace,
      labelSelector: `${labels.managedBy}=${managedBy}`,
    }),
    daemonSets: follow(daemonSets, { namespace: options.namespace }),
    templateRevisions: follow(templateRevisions, {
      namespace: options.namespace,
      labelSelector: agentSelector,
      transform: ({ metadata, revision }) => ({ metadata, revision }),
    }),
    agentPods: follow(agentPods, {
      namespace: options.namespace,
      labelSelector: agentSelector,
      transform: slimAgentPod,
    }),
  };
  const stores = {
    profiles: reflectors.profiles.store,
    nodeRuntimes: reflectors.nodeRuntimes.store,
    nodes: reflectors.nodes.store,
    leases: { get: (node: string) => reflectors.leases.store.get(`${options.namespace}/${node}`) },
    runtimeClasses: reflectors.runtimeClasses.store,
    pods: reflectors.pods.store,
    namespaces: reflectors.namespaces.store,
    validatingPolicies: reflectors.validatingPolicies.store,
    validatingBindings: reflectors.validatingBindings.store,
    mutatingPolicies: reflectors.mutatingPolicies.store,
    mutatingBindings: reflectors.mutatingBindings.store,
    controllerRevisions: reflectors.controllerRevisions.store,
  };
  fleetMetrics(registry, () => stores.nodeRuntimes.list());
  const observe = queueMetrics(registry);
  const profileQueue = createQueue({ clock, observer: observe("runtimeprofile") });
  const nodeQueue = createQueue({ clock, observer: observe("noderuntime") });
  const agentsQueue = createQueue({ clock, observer: observe("nodeagent") });
  const asked = new Set<string>();
  const seeAgents = () =>
    agentsView({
      now: clock.now(),
      daemonSets: reflectors.daemonSets.store.list(),
      revisions: reflectors.templateRevisions.store.list(),
      pods: reflectors.agentPods.store.list(),
      nodeRuntimes: stores.nodeRuntimes,
      asked,
    });
  const agents = createAgentsRollout({
    ...{ client, recorder, registry, log, asked, view: seeAgents },
    around: () => ({
      now: clock.now(),
      staleAfterMs,
      labelsOf: (node) => stores.nodes.get(node)?.metadata.labels ?? {},
      reportOf: (node) => {
        const runtime = stores.nodeRuntimes.get(node);
        const heartbeat = heardOf(runtime, stores.leases.get(node));
        return (
          runtime && {
            profiles: runtime.spec.profiles.length,
            ...(heartbeat === undefined ? {} : { heartbeat }),
          }
        );
      },
    }),
  });
  const decisions: Decisions = new Map();
  const index = createNodeIndex({ ...stores, decisions, staleAfterMs, clock });
  const pace = createPace();
  const latest = {
    profiles: createLatest(stores.profiles, clock),
    nodeRuntimes: createLatest(stores.nodeRuntimes, clock),
    nodes: createLatest(stores.nodes, clock),
  };
  const context: Context = {
    client,
    stores,
    index,
    latest,
    slimRuntime,
    decisions,
    drains: { decided: new Map(), over: new Set() },
    pace,
    untainted: new Map(),
    recorder,
    metrics: profileMetrics(registry),
    enqueueNode: (name) => nodeQueue.add(name),
    enqueueProfile: (name) => profileQueue.add(name),
    clock,
    staleAfterMs,
    namespace: options.namespace,
    reserved: [...systemNamespaces, options.namespace],
    mutates: () => reflectors.mutatingPolicies.isServed,
    log,
  };

  // What many nodes tell within a moment is planned once.
  const waiting = new Set<string>();
  const soon = (profile: string) => profileQueue.addAfter(profile, pace.delayMs(waiting.add(profile).size));

  reflectors.profiles.on((change) => {
    const { name } = change.object.metadata;
    // Our own writes come back, too: they ask for nothing, unless they carry what another changed meanwhile.
    const own = latest.profiles.seen(change.object);
    if (change.type === "deleted") latest.profiles.forget(name);
    if (change.type === "updated" && change.old.metadata.generation === change.object.metadata.generation) {
      // A status of ours may be here before its answer is: planned at once, one would be written for the other's sake.
      if (!own) soon(name);
      return;
    }
    profileQueue.add(name);
    // The older of two has a namespace, and a stronger wall is as good as one's own: tenancy looks at all profiles.
    for (const other of stores.profiles.list()) if (other.spec?.tenancy) soon(other.metadata.name);
  });

  reflectors.nodes.on((change) => {
    const { name, uid, labels: now } = change.object.metadata;
    latest.nodes.seen(change.object);
    if (change.type === "deleted") latest.nodes.forget(name);
    if (change.type === "updated" && change.old.metadata.uid === uid) {
      if (sameJson(change.old.metadata.labels, now)) return;
    }
    nodeQueue.add(name);
    for (const profile of index.changed(name)) soon(profile);
  });

  reflectors.nodeRuntimes.on((change) => {
    const { object, type } = change;
    const { name } = object.metadata;
    latest.nodeRuntimes.seen(object);
    if (type === "deleted") latest.nodeRuntimes.forget(name);
    const touched = index.changed(name);
    for (const profile of touched) soon(profile);
    // What others made of the spec or the owner is put right, whatever it means to the profiles.
    const kept =
      type === "updated" &&
      sameJson(change.old.spec, object.spec) &&
      sameJson(change.old.metadata.ownerReferences, object.metadata.ownerReferences);
    if (touched.length > 0 || !kept) nodeQueue.add(name);
  });

  reflectors.leases.on(({ object: { metadata } }) => {
    const touched = index.changed(metadata.name);
    for (const profile of touched) soon(profile);
    if (touched.length > 0) nodeQueue.add(metadata.name);
  });

  reflectors.runtimeClasses.on((change) => {
    const { name } = change.object.metadata;
    for (const profile of stores.profiles.list()) {
      const theirs = change.object.metadata.labels?.[labels.profile] === profile.metadata.name;
      if (theirs || safeClassName(profile) === name) profileQueue.add(profile.metadata.name);
      else if (profile.spec?.tenancy) soon(profile.metadata.name);
    }
  });

  reflectors.namespaces.on((change) => {
    if (change.type === "updated" && sameJson(change.old.metadata.labels, change.object.metadata.labels))
      return;
    for (const profile of stores.profiles.list()) if (profile.spec?.tenancy) soon(profile.metadata.name);
  });

  for (const reflector of [
    reflectors.validatingPolicies,
    reflectors.validatingBindings,
    reflectors.mutatingPolicies,
    reflectors.mutatingBindings,
  ]) {
    reflector.on(({ object: { metadata } }) => {
      // Also of a profile that is gone: what it left must go.
      const owner = metadata.labels?.[labels.profile] ?? profileOf(metadata.name);
      if (owner !== undefined) profileQueue.add(owner);
      // Where an elder's comes into force or goes, the younger's word begins or ends.
      for (const other of stores.profiles.list())
        if (other.spec?.tenancy && other.metadata.name !== owner) soon(other.metadata.name);
    });
  }

  reflectors.controllerRevisions.on(({ object: { metadata } }) => {
    const owner = metadata.labels?.[labels.profile];
    if (owner !== undefined && stores.profiles.get(owner)) soon(owner);
  });

  reflectors.pods.on((change) => {
    if (change.type === "updated" && sameJson(change.old, change.object)) return;
    const className = change.object.spec?.runtimeClassName;
    const namespace = stores.namespaces.get(change.object.metadata.namespace ?? "");
    for (const profile of stores.profiles.list()) {
      const selector = profile.spec?.tenancy?.namespaceSelector;
      const tenants = selector && namespace && selects(selector, namespace.metadata.labels ?? {});
      if (safeClassName(profile) === className || tenants) soon(profile.metadata.name);
    }
  });

  // A new template comes with its revision and the settings of its rollout: all three are there within the moment.
  const lookAtAgents = () => agentsQueue.addAfter("agents", 500);
  reflectors.daemonSets.on(lookAtAgents);
  reflectors.templateRevisions.on(lookAtAgents);
  reflectors.agentPods.on(({ type, object }) => {
    if (type === "deleted") asked.delete(object.metadata.uid ?? "");
    lookAtAgents();
  });

  const all = Object.entries(reflectors) as [
    string,
    Pick<Reflector<KubeObject>, "run" | "isSynced" | "synced">,
  ][];
  return {
    watch: async (signal) => {
      await Promise.all(all.map(([, reflector]) => reflector.run(signal)));
    },
    missing: () => all.filter(([, reflector]) => !reflector.isSynced).map(([name]) => name),
    fleet: () => ({
      now: clock.now(),
      staleAfterMs,
      profiles: stores.profiles,
      agents: seeAgents(),
      nodeRuntimes: {
        get: (name) => {
          const runtime = stores.nodeRuntimes.get(name);
          return runtime && asHeard(runtime, stores.leases.get(name));
        },
        list: () =>
          Array.from(stores.nodeRuntimes.list(), (runtime) =>
            asHeard(runtime, stores.leases.get(runtime.metadata.name)),
          ),
      },
    }),
    work: async (signal) => {
      const stopped = new Promise<void>((resolve) => {
        if (signal.aborted) resolve();
        signal.addEventListener("abort", () => resolve(), { once: true });
      });
      // With half the stores, nodes would look gone and classes missing.
      await Promise.race([Promise.all(all.map(([, reflector]) => reflector.synced)), stopped]);
      if (signal.aborted) return;
      // Another leader may have decided since: only what stands in the API counts.
      decisions.clear();
      context.drains.decided.clear();
      context.drains.over.clear();
      index.clear();
      for (const each of Object.values(latest)) each.clear();
      agents.clear();
      agentsQueue.add("agents");
      for (const profile of stores.profiles.list()) profileQueue.add(profile.metadata.name);
      for (const node of stores.nodes.list()) nodeQueue.add(node.metadata.name);
      for (const runtime of stores.nodeRuntimes.list()) nodeQueue.add(runtime.metadata.name);
      const onError = (controller: string) => (key: string, error: unknown, retryInMs: number) =>
        log.warn(
          { controller, key, err: messageOf(error), retryInMs: Math.round(retryInMs) },
          "reconcile failed",
        );
      await Promise.all([
        profileQueue.run({
          concurrency: 4,
          signal,
          handle: (key, until) => {
            waiting.delete(key);
            const attributes = { "bulkhead.profile": key };
            return rootSpan("reconcile RuntimeProfile", { quiet: true, attributes }, () =>
              reconcileProfile(key, context, until),
            );
          },
          onError: onError("runtimeprofile"),
        }),
        nodeQueue.run({
          concurrency: 16,
          signal,
          handle: (key, until) =>
            rootSpan("reconcile Node", { quiet: true, attributes: { "k8s.node.name": key } }, () =>
              reconcileNode(key, context, until),
            ),
          onError: onError("noderuntime"),
        }),
        agentsQueue.run({
          concurrency: 1,
          signal,
          handle: (_key, until) =>
            rootSpan("reconcile node agents", { quiet: true }, () => agents.reconcile(until)),
          onError: onError("nodeagent"),
        }),
      ]);
    },
  };
};

/** The class name of a profile whose spec nobody has parsed yet. */
const safeClassName = (profile: Parameters<typeof runtimeClassName>[0]): string =>
  profile.spec?.runtimeClass ? runtimeClassName(profile) : profile.metadata.name;
