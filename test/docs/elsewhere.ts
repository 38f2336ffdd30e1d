/**
 * What the pages say and test/docs/commands.cluster.test.ts does not run, each with what runs it, or why nothing can.
 * docs.test.ts holds this list to the pages, both ways.
 */
type Elsewhere = { why: string; test?: string };

const by = (test: string, why: string): Elsewhere => ({ test, why });
const critest = by("test/cri/critest.host.test.ts", "critest takes minutes");
const artifact = by("test/images/artifact.host.test.ts", "wants an artifact, a registry and keys of its own");
const runtime = by("test/cri/crictl.host.test.ts", "the runtime alone on this machine, without a cluster");
const upstream = by("test/e2e/upstream.cluster.test.ts", "upstream's specs take hours");
const versions = by("test/dev/versions.ts", "builds another Kubernetes, which takes minutes each");
const arm64 = by("test/vm/runtime.arm64.test.ts", "compiles for arm64 and emulates it: twenty minutes");
const undo = by("kubectl/src/kubectl.host.test.ts", "the history of the tests' cluster is not the page's");

export const elsewhere: Record<string, Elsewhere> = {
  "./dev demo": by(
    "test/cluster/bulkhead.ts",
    "minutes, and a cluster of its own; each of its steps is here",
  ),
  "./dev shell node-1": { why: "wants a terminal" },
  "./dev down": by("test/cluster/cluster.cluster.test.ts", "would take the tests' cluster away"),
  "./dev test": { why: "is what runs this" },
  "./dev tools": { why: "is what set up the machine that runs this" },
  "./dev plugin ~/.local/bin": by(
    "test/dev/plugin.ts",
    "writes into a home; the plugin that runs here is its work",
  ),
  "./dev tools --arch arm64": arm64,
  "node images/build.ts --registry REGISTRY --tag 0.1.0 --arch amd64 --arch arm64": arm64,
  "./dev vm-arm64": arm64,
  "node images/build.ts --registry REGISTRY --tag 0.1.0": by(
    "test/cluster/push-images.ts",
    "the images that run here are its work",
  ),

  "./dev runtime up [--socket S] [--root D] [--state D] [--mirror HOST=URL]… [--test-images]": runtime,
  "./dev runtime up --test-images": runtime,
  "./dev runtime down": runtime,
  "./dev crictl info": runtime,
  "./dev critest": critest,
  "./dev critest [--handler runc|gvisor|shim] [--parallel 4] [--ginkgo.focus=Basic]": critest,
  "./dev critest --handler gvisor": critest,
  "./dev critest --parallel 4 -websocket-exec": critest,
  "critest --runtime-endpoint unix:///run/bulkhead-dev-runtime/cri.sock": critest,
  "./dev e2e-upstream": upstream,
  "./dev e2e-upstream --engine containerd": upstream,
  "./dev e2e-upstream --focus 'Container Runtime' --skip '\\[Slow\\]' --procs 8": upstream,
  "./dev versions": versions,
  "./dev versions --nodes 1.34": versions,
  "./dev --kubernetes 1.36 --kubelet 1.33 test --project cluster test/pods/pods": versions,
  "./dev --kubernetes 1.34 up --nodes 2": versions,
  "KATA_ROOT=/opt/kata ./dev test --project host test/kata": by(
    "test/kata/kata.host.test.ts",
    "no Kata is here",
  ),

  "bulkhead-runtime artifact fetch [--key cosign.pub] [--registry HOST[:PORT][/PATH]] [--platform linux/arm64] IMAGE DIRECTORY":
    artifact,
  "bulkhead-runtime artifact verify [--key cosign.pub] … IMAGE": artifact,
  "./dev artifact build gvisor --registry registry.example --name bulkhead/gvisor": artifact,
  "./dev artifact build amd64=gvisor-amd64 arm64=gvisor-arm64 --registry registry.example --name bulkhead/gvisor":
    artifact,
  "KATA_ROOT=/opt/kata ./dev artifact build kata --registry registry.example --name bulkhead/kata": artifact,
  "./dev artifact build mine --registry registry.example --name bulkhead/mine": artifact,
  "cosign sign --key cosign.key --tlog-upload=false --use-signing-config=false registry.example/bulkhead/mine@sha256:…":
    artifact,

  "helm test bulkhead --namespace bulkhead-system": by("test/agent/chart.cluster.test.ts", "run there"),
  "helm rollback bulkhead --namespace bulkhead-system --wait --timeout 30m": by(
    "test/chart/upgrade.cluster.test.ts",
    "run there, from a version to go back from",
  ),
  "kubectl bulkhead rollout undo sandboxed": undo,
  "kubectl bulkhead rollout undo sandboxed --to-revision 3": undo,
};

/** Blocks of YAML that are no object of the API and no values, by page and first line. */
export const otherYaml: Record<string, Elsewhere> = {
  "docs/images.md images:": by("test/images/signature.host.test.ts", "of the runtime's own configuration"),
  "docs/tracing.md # KubeletConfiguration": { why: "of the kubelet's configuration" },
};

/** Commands that the cluster test runs, by their beginning. */
export const isRun = (command: string): boolean =>
  elsewhere[command] === undefined &&
  /^(kubectl|helm|skopeo copy|\.\/dev (kubectl|crictl|logs|status)) ?/.test(command);
