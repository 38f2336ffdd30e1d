/**
 * What to do about a reason: of a condition of RuntimeProfile or NodeRuntime, or of a profile on a node.
 * docs/runbook.md says more of each, under a heading of the reason's name; a test holds the two together.
 */
export const advice: Record<string, string> = {
  AgentNotReady:
    "the newest version does not come up there: kubectl -n bulkhead-system describe the pod, and read its logs",
  AgentSilent: "look at the node and at its node-agent pod: kubectl -n bulkhead-system get pods -o wide",
  AgentsSilent: "look at the nodes and their node-agent pods: kubectl -n bulkhead-system get pods -o wide",
  ArtifactChanged:
    "somebody changed programs on that node: find out who; artifact.repair: true fetches them anew",
  ArtifactFailed: "the artifact could not be fetched or its signature is not the policy's: read the message",
  CanaryFailed:
    "the handler is installed and its wall does not hold or does not start: read the message, then the installer's log on that node",
  Draining:
    "the profile's pods are evicted from the node within their budgets; rollout.drain.deadline bounds it",
  EngineFailed:
    "the node's runtime did not come up, or its own engine with new handlers: read the message, then that unit's journal",
  EngineNotFound:
    "what serves that node's kubelet cannot be told of handlers: read the message, or use engine: bulkhead",
  FailureThreshold:
    "mend what the failed nodes name, or undo the change; the rollout goes on when the failed nodes are well or spec changes",
  ForeignPolicy: "delete that admission policy or binding: its name is kept for the profile's tenancy",
  ForeignRuntimeClass: "delete that RuntimeClass, or give the profile another spec.runtimeClass.name",
  InstallFailed: "the message names the step that failed; the node was put back to its last good state",
  InUse: "the profile goes when the last pod of its RuntimeClass has ended: kubectl bulkhead tenants",
  InvalidRuntimeConfig:
    "mend runtime.config or runtime.files in the chart's values: the message names the key; what runs goes on as it is",
  InvalidSpec: "kubectl apply a spec that holds to the message",
  KubeletSwitchFailed:
    "the kubelet did not come back on Bulkhead's socket and was pointed back: read the kubelet's journal",
  LeaveFailed: "the node could not be given back yet; the agent tries again: read the message",
  NamespaceConflict:
    "the older profile keeps the namespaces: make the two spec.tenancy.namespaceSelectors exclude each other",
  NoNodes: "label nodes so that spec.nodeSelector selects them, or widen it",
  NoReport: "no agent has reported from there: is a node-agent pod on that node, and does it run?",
  NodesFailed: "kubectl bulkhead status PROFILE tells each node's reason",
  NodesNotReady: "wait, or see kubectl bulkhead status PROFILE for what each node waits for",
  NotSupported: "this version of Bulkhead cannot do what the profile asks there: read the message",
  Paused: "kubectl bulkhead rollout resume PROFILE",
  PodsRunning: "the node keeps the handler until the last pod that uses it has ended",
  PodsOutside:
    "these pods are older than the policy, static, or an exempt account's: restart them, or exempt their namespace",
  PolicyRefused: "the API server would not take the admission policy: the message has its words",
  RemovingFromNodes:
    "the agents of the named nodes give the handler back; a node that is gone for good: delete its Node",
  RolledBack:
    "nodes have the last good revision until spec changes: mend what failed, or kubectl bulkhead rollout undo PROFILE",
  RuntimeClassNotReady: "tenancy waits for the profile's RuntimeClass: see the condition RuntimeClassReady",
  RuntimeClassRefused: "the API server would not take the RuntimeClass: the message has its words",
};

/** What to do about `reason`, or where to read on when it is a new one. */
export const adviceOn = (reason: string): string => advice[reason] ?? "read the message";
