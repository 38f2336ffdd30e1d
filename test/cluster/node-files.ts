import { createHash } from "node:crypto";
import { dump } from "js-yaml";
import { bulkheadFiles, bulkheadSocket } from "./node-bulkhead.ts";
import { apiUrl, type ClusterPlan, type NodePlan, registryHost } from "./plan.ts";

/** A file of a node, by its path there. */
export type NodeFile = { path: string; text: string; mode?: number };

/** What a node is told by its files: who it is, its engine, its pod network, its kubelet. Pure. */
export const nodeFiles = (
  plan: ClusterPlan,
  node: NodePlan,
  pem: { ca: string; kubeconfig: string },
): NodeFile[] => [
  { path: "/etc/hostname", text: `${node.name}\n` },
  {
    path: "/etc/hosts",
    text: ["127.0.0.1 localhost", ...plan.nodes.map((each) => `${each.address} ${each.name}`), ""].join("\n"),
  },
  // Nothing answers there: a name that a pod looks up fails at once instead of after a timeout.
  { path: "/etc/resolv.conf", text: "nameserver 127.0.0.1\n" },
  {
    path: "/etc/machine-id",
    text: `${createHash("sha256").update(`${plan.name}/${node.name}`).digest("hex").slice(0, 32)}\n`,
  },
  ...(node.description.engine === "bulkhead" ? bulkheadFiles(node.description) : containerdFiles(plan)),
  { path: `/etc/containerd/certs.d/${registryHost(plan)}/hosts.toml`, text: registryHosts(plan) },
  { path: "/etc/crictl.yaml", text: `runtime-endpoint: ${criEndpoint(node)}\ntimeout: 60\n` },
  { path: "/etc/cni/net.d/10-pods.conflist", text: `${JSON.stringify(podNetwork(node), undefined, 2)}\n` },
  { path: "/etc/kubernetes/pki/ca.crt", text: pem.ca },
  { path: "/etc/kubernetes/kubelet.conf", text: pem.kubeconfig, mode: 0o600 },
  { path: "/etc/kubernetes/kubelet.yaml", text: dump(kubeletConfiguration(node)) },
  { path: "/etc/systemd/system/kubelet.service", text: kubeletUnit(node) },
  {
    path: "/etc/systemd/journald.conf.d/node.conf",
    // The kernel's log is the machine's, not this node's.
    text: "[Journal]\nStorage=persistent\nSystemMaxUse=64M\nReadKMsg=no\n",
  },
];

/** The engine's unit. */
const engineUnit = (node: NodePlan): string =>
  node.description.engine === "bulkhead" ? "bulkhead-runtime.service" : "containerd.service";

/** Where the kubelet finds the engine. */
const criEndpoint = (node: NodePlan): string =>
  `unix://${node.description.engine === "bulkhead" ? bulkheadSocket : "/run/containerd/containerd.sock"}`;

/** Units to start at boot. */
export const enabledUnits = (node: NodePlan): string[] => [engineUnit(node), "kubelet.service"];

/** Units that make no sense on a node without consoles and timers of its own, or that would set up the machine. */
export const maskedUnits = [
  "systemd-sysctl.service",
  "sys-kernel-debug.mount",
  "sys-kernel-tracing.mount",
  "dev-hugepages.mount",
  "console-getty.service",
  "getty.target",
  "systemd-logind.service",
  "systemd-update-utmp.service",
  "apt-daily.timer",
  "apt-daily-upgrade.timer",
  "dpkg-db-backup.timer",
  "e2scrub_all.timer",
  "e2scrub_reap.service",
  "fstrim.timer",
];

const containerdFiles = (plan: ClusterPlan): NodeFile[] => [
  { path: "/etc/containerd/config.toml", text: containerdConfig(plan) },
  { path: "/etc/systemd/system/containerd.service", text: containerdUnit },
];

const containerdConfig = (plan: ClusterPlan): string => `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
imports = ["/etc/containerd/conf.d/*.toml"]

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"

  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "/etc/containerd/certs.d"

  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "${registryHost(plan)}/pause:latest"

[plugins.'io.containerd.cri.v1.runtime']
  # The machine under the nodes cannot lower oom_score_adj.
  restrict_oom_score_adj = true

  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"

    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        SystemdCgroup = false

    # The handler that upstream's end-to-end suite expects of a node.
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.test-handler]
      runtime_type = "io.containerd.runc.v2"
`;

const registryHosts = (plan: ClusterPlan): string => `server = "http://${registryHost(plan)}"

[host."http://${registryHost(plan)}"]
  capabilities = ["pull", "resolve"]
`;

/** CNI network configuration list 1.0.0. */
const podNetwork = (node: NodePlan) => ({
  cniVersion: "1.0.0",
  name: "pods",
  plugins: [
    {
      type: "bridge",
      bridge: "cni0",
      isGateway: true,
      hairpinMode: true,
      ipMasq: false,
      ipam: {
        type: "host-local",
        // Forgotten with the namespaces it speaks of, when the node restarts.
        dataDir: "/run/cni/host-local",
        ranges: [[{ subnet: node.podCidr }]],
        routes: [{ dst: "0.0.0.0/0" }],
      },
    },
    { type: "portmap", capabilities: { portMappings: true } },
  ],
});

const kubeletConfiguration = (node: NodePlan): Record<string, unknown> => ({
  apiVersion: "kubelet.config.k8s.io/v1beta1",
  kind: "KubeletConfiguration",
  containerRuntimeEndpoint: criEndpoint(node),
  authentication: {
    anonymous: { enabled: false },
    webhook: { enabled: true },
    x509: { clientCAFile: "/etc/kubernetes/pki/ca.crt" },
  },
  authorization: { mode: "Webhook" },
  cgroupDriver: "cgroupfs",
  failCgroupV1: false,
  failSwapOn: false,
  staticPodPath: "/etc/kubernetes/manifests",
  registerNode: true,
  // The disk is the machine's: how full it is is not this node's business.
  imageGCHighThresholdPercent: 100,
  imageGCLowThresholdPercent: 99,
  evictionHard: { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
  // Tests wait for what kubelet reports: it reports often.
  nodeStatusUpdateFrequency: "5s",
  nodeLeaseDurationSeconds: 20,
  syncFrequency: "10s",
  fileCheckFrequency: "2s",
  volumeStatsAggPeriod: "10s",
  ...node.description.kubelet,
});

const containerdUnit = `[Unit]
Description=containerd container runtime
After=network.target dbus.service

[Service]
Type=notify
ExecStart=/usr/local/bin/containerd
Delegate=yes
KillMode=process
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
`;

const kubeletUnit = (node: NodePlan): string => `[Unit]
Description=kubelet: the Kubernetes node agent
After=${engineUnit(node)}
Wants=${engineUnit(node)}
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/local/bin/kubelet \\
  --config=/etc/kubernetes/kubelet.yaml \\
  --kubeconfig=/etc/kubernetes/kubelet.conf \\
  --hostname-override=${node.name} \\
  --node-ip=${node.address}
KillMode=process
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
`;

/** The commands, for a shell inside the node's network namespace, that wire the node to the cluster. */
export const networkScript = (plan: ClusterPlan, node: NodePlan): string => {
  const others = plan.nodes.filter((other) => other !== node);
  return [
    "set -e",
    "ip link set lo up",
    `ip link set eth0 address ${node.mac} up`,
    `ip addr add ${node.address}/${plan.prefix} dev eth0`,
    `ip route add default via ${plan.address}`,
    ...others.map((other) => `ip route add ${other.podCidr} via ${other.address}`),
    // No kube-proxy: the one ClusterIP that programs in pods need is the API server's.
    ...["PREROUTING", "OUTPUT"].map(
      (chain) =>
        `iptables -w -t nat -A ${chain} -d ${plan.serviceAddress}/32 -p tcp --dport 443 ` +
        `-m comment --comment ${new URL(apiUrl(plan)).host} -j DNAT --to-destination ${plan.address}:${plan.apiPort}`,
    ),
  ].join("\n");
};
