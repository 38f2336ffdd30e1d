import { kube as kubeOf } from "../tools/kubernetes.ts";
import { pki } from "./certificates.ts";
import { apiUrl, type ClusterPlan } from "./plan.ts";
import type { Daemon } from "./process.ts";

/** Components of a cluster that run on the machine itself, in the order they start. */
export const components = [
  "etcd",
  "kube-apiserver",
  "kube-controller-manager",
  "kube-scheduler",
  "registry",
] as const;

/** One of {@link components}. */
export type Component = (typeof components)[number];

/** The log of a component. */
export const logOf = (plan: ClusterPlan, component: string): string => `${plan.disk}/logs/${component}.log`;

/** How each component is started. Pure. */
export const controlPlane = (
  plan: ClusterPlan,
  programs: { etcd: string; registry: string },
): Record<Component, Daemon> => {
  const at = pki(plan);
  const { ports } = plan;
  const kube = (component: Component, flags: readonly string[]): Daemon => ({
    component,
    argv: [kubeOf(plan.kubernetes.controlPlane), ...flags],
    // The binary is four programs; this name says which.
    argv0: component,
    log: logOf(plan, component),
  });
  return {
    etcd: {
      component: "etcd",
      log: logOf(plan, "etcd"),
      argv: [
        programs.etcd,
        "--name=etcd",
        `--data-dir=${plan.disk}/etcd`,
        `--listen-client-urls=http://127.0.0.1:${ports.etcd}`,
        `--advertise-client-urls=http://127.0.0.1:${ports.etcd}`,
        `--listen-peer-urls=http://127.0.0.1:${ports.etcdPeer}`,
        `--initial-advertise-peer-urls=http://127.0.0.1:${ports.etcdPeer}`,
        `--initial-cluster=etcd=http://127.0.0.1:${ports.etcdPeer}`,
        "--logger=zap",
        "--log-level=warn",
      ],
    },
    "kube-apiserver": kube("kube-apiserver", [
      `--etcd-servers=http://127.0.0.1:${ports.etcd}`,
      `--bind-address=${plan.address}`,
      `--advertise-address=${plan.address}`,
      `--secure-port=${plan.apiPort}`,
      `--service-cluster-ip-range=${plan.serviceCidr}`,
      `--client-ca-file=${at.ca.cert}`,
      `--tls-cert-file=${at.apiServer.cert}`,
      `--tls-private-key-file=${at.apiServer.key}`,
      `--kubelet-client-certificate=${at.kubeletClient.cert}`,
      `--kubelet-client-key=${at.kubeletClient.key}`,
      "--kubelet-preferred-address-types=InternalIP",
      "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
      `--service-account-key-file=${at.serviceAccount.pub}`,
      `--service-account-signing-key-file=${at.serviceAccount.key}`,
      "--authorization-mode=Node,RBAC",
      "--enable-admission-plugins=NodeRestriction,RuntimeClass,MutatingAdmissionPolicy,ValidatingAdmissionPolicy",
      "--allow-privileged=true",
    ]),
    "kube-controller-manager": kube("kube-controller-manager", [
      `--kubeconfig=${plan.disk}/controller-manager.kubeconfig`,
      "--bind-address=127.0.0.1",
      `--secure-port=${ports.controllerManager}`,
      "--leader-elect=false",
      "--use-service-account-credentials=true",
      `--root-ca-file=${at.ca.cert}`,
      `--service-account-private-key-file=${at.serviceAccount.key}`,
      `--cluster-signing-cert-file=${at.ca.cert}`,
      `--cluster-signing-key-file=${at.ca.key}`,
      // The defaults spread the start of all controllers over five seconds.
      "--kube-api-qps=300",
      "--kube-api-burst=600",
      // A node that died is seen within seconds.
      "--node-monitor-period=2s",
      "--node-monitor-grace-period=20s",
    ]),
    "kube-scheduler": kube("kube-scheduler", [
      `--kubeconfig=${plan.disk}/scheduler.kubeconfig`,
      "--bind-address=127.0.0.1",
      `--secure-port=${ports.scheduler}`,
      "--leader-elect=false",
    ]),
    registry: {
      component: "registry",
      log: logOf(plan, "registry"),
      argv: [programs.registry, "serve", `${plan.disk}/registry.yml`],
    },
  };
};

/** Where each component says that it is well. */
export const healthUrl = (plan: ClusterPlan, component: Component): string => {
  switch (component) {
    case "etcd":
      return `http://127.0.0.1:${plan.ports.etcd}/health`;
    case "kube-apiserver":
      return `${apiUrl(plan)}/readyz`;
    case "kube-controller-manager":
      return `https://127.0.0.1:${plan.ports.controllerManager}/healthz`;
    case "kube-scheduler":
      return `https://127.0.0.1:${plan.ports.scheduler}/healthz`;
    case "registry":
      return `http://${plan.address}:${plan.registryPort}/v2/`;
  }
};

/** Configuration of docker-registry (distribution 2.8). */
export const registryConfig = (plan: ClusterPlan, dir: string): string => `version: 0.1
log: { level: warn, accesslog: { disabled: true } }
storage:
  filesystem: { rootdirectory: ${dir} }
  delete: { enabled: true }
http: { addr: "${plan.address}:${plan.registryPort}" }
`;
