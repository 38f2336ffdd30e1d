import { dump } from "js-yaml";
import { tool } from "../tools/cache.ts";
import { chosenVersions, kube } from "../tools/kubernetes.ts";
import { oldConfig } from "./containerd-config.ts";
import type { EngineNodeOptions } from "./node.ts";

/**
 * Nodes of distributions that run the kubelet inside a process of their own. None of them is to be had here: these are
 * fakes of their layout, with a real kubelet in a process of that name (test/tools/kubernetes/main.go) and a real
 * containerd, whose configuration is written at each start as theirs is.
 */
export type Distribution = {
  /** Which part of the node holds the kubelet, in the agent's words. */
  inside: string;
  /** The units of the kubelet and of containerd, which may be one. */
  kubelet: string;
  containerd: string;
  /** The file that containerd reads. */
  config: string;
  node: Pick<EngineNodeOptions, "files" | "programs" | "socket" | "debs">;
};

/** What every node of ours says of its containerd: until k3s' drop-ins, and with them. */
const withoutDropins = (registry: string): string => `${oldConfig(registry)}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
`;
const withDropins = (registry: string): string => `version = 3
imports = ["/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/*.toml"]
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "/etc/containerd/certs.d"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "${registry}/pause:latest"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
`;

const flags = [
  "--config=/etc/kubernetes/kubelet.yaml",
  "--kubeconfig=/etc/kubernetes/kubelet.conf",
  "--hostname-override=node-1",
];

/** Units that the node would have of its own, and crictl's endpoint. */
const instead = (socket: string, ...units: string[]): Record<string, string> => ({
  "/etc/systemd/system/containerd.service": "[Service]\nType=oneshot\nExecStart=/bin/true\n",
  "/etc/systemd/system/kubelet.service": `[Unit]\nWants=${units.join(" ")}\n[Service]\nType=oneshot\nExecStart=/bin/true\n`,
  "/etc/crictl.yaml": `runtime-endpoint: unix://${socket}\ntimeout: 60\n`,
});

const service = (start: string, before: string, path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin") =>
  `[Unit]
StartLimitIntervalSec=0
[Service]
Type=notify
Environment=PATH=${path}
ExecStartPre=/bin/sh -ec '${before}'
ExecStart=${start}
Delegate=yes
KillMode=process
Restart=always
RestartSec=1
`;

const k3s = "/var/lib/rancher/k3s/data/0123456789abcdef/bin/k3s";
const etc = "/var/lib/rancher/k3s/agent/etc";
const k3sSocket = "/run/k3s/containerd/containerd.sock";
const program = (): string => kube(chosenVersions().kubelet);

/** k3s as of 1.32: its file imports drop-ins, and the kubelet's endpoint is in a file of the kubelet's. */
const k3sServer: Distribution = {
  inside: "k3s",
  kubelet: "k3s.service",
  containerd: "k3s.service",
  config: `${etc}/containerd/config.toml`,
  node: {
    programs: { [k3s]: program() },
    files: (registry) => ({
      ...instead(k3sSocket, "k3s.service"),
      [`${etc}/containerd/base.toml`]: withDropins(registry),
      [`${etc}/kubelet.conf.d/00-k3s-defaults.conf`]: dump({
        apiVersion: "kubelet.config.k8s.io/v1beta1",
        kind: "KubeletConfiguration",
        containerRuntimeEndpoint: `unix://${k3sSocket}`,
      }),
      "/etc/rancher/k3s/kubelet.args": [...flags, `--config-dir=${etc}/kubelet.conf.d`].join("\n"),
      "/etc/systemd/system/k3s.service": service(
        `@${k3s} /usr/local/bin/k3s server`,
        `cd ${etc}/containerd; cp base.toml config.toml`,
      ),
    }),
  },
};

/** k3s before that: a template, and no file of the kubelet's. Its containerd is Debian's 1.6. */
const k3sAgent: Distribution = {
  inside: "k3s",
  kubelet: "k3s-agent.service",
  containerd: "k3s-agent.service",
  config: `${etc}/containerd/config.toml`,
  node: {
    socket: k3sSocket,
    debs: [["containerd", "usr/bin/containerd"]],
    programs: { [k3s]: program(), "/opt/runc/runc": tool("runc") },
    files: (registry) => ({
      ...instead(k3sSocket, "k3s-agent.service"),
      [`${etc}/containerd/base.toml`]: withoutDropins(registry),
      "/etc/rancher/k3s/kubelet.args": flags.join("\n"),
      "/etc/systemd/system/k3s-agent.service": service(
        `@${k3s} /usr/local/bin/k3s agent`,
        // What {{ template "base" . }} stands for.
        `cd ${etc}/containerd; cp base.toml config.toml; test ! -e config.toml.tmpl || sed -e "/{{/r base.toml" -e "/{{/d" config.toml.tmpl >config.toml`,
        "/usr/bin:/bin:/usr/sbin:/sbin:/opt/runc",
      ),
    }),
  },
};

const snap = "/var/snap/microk8s/8511";
const snapSocket = "/var/snap/microk8s/common/run/containerd.sock";

/** microk8s: the kubelet's arguments and containerd's template are files of the snap's revision. */
const microk8s: Distribution = {
  inside: "microk8s",
  kubelet: "snap.microk8s.daemon-kubelite.service",
  containerd: "snap.microk8s.daemon-containerd.service",
  config: `${snap}/args/containerd.toml`,
  node: {
    programs: {
      "/snap/microk8s/8511/kubelite": program(),
      "/snap/microk8s/8511/bin/containerd": tool("containerd"),
    },
    files: (registry) => ({
      ...instead(
        snapSocket,
        "snap.microk8s.daemon-containerd.service",
        "snap.microk8s.daemon-kubelite.service",
      ),
      [`${snap}/args/kubelet`]: [
        ...flags,
        "--container-runtime-endpoint=$SNAP_COMMON/run/containerd.sock",
      ].join("\n"),
      [`${snap}/args/containerd-template.toml`]: withoutDropins(registry).replace(
        "io.containerd.runc.v2",
        `\${RUNTIME_TYPE}`,
      ),
      "/etc/systemd/system/snap.microk8s.daemon-containerd.service": service(
        `/snap/microk8s/8511/bin/containerd --config ${snap}/args/containerd.toml --root /var/lib/containerd/microk8s --state /var/snap/microk8s/common/run/containerd --address ${snapSocket}`,
        `cd ${snap}/args; sed s/.{RUNTIME_TYPE}/io.containerd.runc.v2/ containerd-template.toml >containerd.toml`,
      ),
      "/etc/systemd/system/snap.microk8s.daemon-kubelite.service": `[Unit]
After=snap.microk8s.daemon-containerd.service
${service(
  `/snap/microk8s/8511/kubelite --kubelet-args-file=${snap}/args/kubelet`,
  `ln -sfn 8511 /var/snap/microk8s/current`,
).replace(
  "Type=notify",
  `Type=notify\nEnvironment=SNAP_DATA=${snap} SNAP_COMMON=/var/snap/microk8s/common`,
)}`,
    }),
  },
};

export const distributions: readonly (readonly [name: string, Distribution])[] = [
  ["k3s with drop-ins", k3sServer],
  ["k3s with a template", k3sAgent],
  ["microk8s", microk8s],
];
