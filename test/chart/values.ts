import { join } from "node:path";

export const chart = join(import.meta.dirname, "../../charts/bulkhead");

/** Every value of the chart set to another than its default. */
export const all = {
  image: {
    registry: "registry.test:5000",
    repository: "walls",
    tag: "1.2.3",
    pullPolicy: "Always",
    digests: { operator: `sha256:${"0".repeat(64)}`, nodeAgent: `sha256:${"1".repeat(64)}` },
    pullSecrets: [{ name: "pull" }],
  },
  artifacts: { registry: "registry.test:5000/mirror" },
  extraLabels: { team: "walls" },
  runtime: {
    config: { images: { pinned: ["registry.test:5000/**"] }, log: { level: "debug" } },
    files: { configMap: "keys", secret: "credentials" },
    proxy: {
      http: "http://proxy.test:3128",
      https: "http://proxy.test:3129",
      except: ["10.0.0.0/8", ".svc"],
    },
  },
  tracing: {
    endpoint: "http://collector.monitoring:4318",
    nodeEndpoint: "http://127.0.0.1:4318",
    samplingRatio: 0.25,
  },
  networkPolicy: {
    enabled: true,
    metricsFrom: [{ namespaceSelector: { matchLabels: { name: "monitoring" } } }],
    statusPageFrom: [{ podSelector: { matchLabels: { app: "ingress" } } }],
    apiServerPorts: [8443],
  },
  apiServer: { host: "api.test", port: 6443 },
  operator: {
    replicas: 2,
    logLevel: "debug",
    staleAfterSeconds: 240,
    mayEvict: true,
    resources: { requests: { cpu: "60m", memory: "97Mi" }, limits: { memory: "385Mi", cpu: 1 } },
    nodeSelector: { "kubernetes.io/os": "linux", role: "infra" },
    tolerations: [{ key: "role", operator: "Equal", value: "infra", effect: "NoSchedule" }],
    priorityClassName: "system-cluster-critical",
    topologySpreadConstraints: [
      {
        maxSkew: 1,
        topologyKey: "zone",
        whenUnsatisfiable: "DoNotSchedule",
        labelSelector: { matchLabels: {} },
      },
    ],
    affinity: {
      podAntiAffinity: {
        requiredDuringSchedulingIgnoredDuringExecution: [
          {
            topologyKey: "kubernetes.io/hostname",
            labelSelector: { matchLabels: { "app.kubernetes.io/component": "operator" } },
          },
        ],
      },
    },
  },
  agent: {
    logLevel: "trace",
    nodeSelector: { "kubernetes.io/os": "linux", walls: "yes" },
    tolerations: [{ key: "walls", operator: "Exists", effect: "NoExecute", tolerationSeconds: 60 }],
    priorityClassName: "system-cluster-critical",
    rollout: {
      canaryNodes: 2,
      canarySelector: { "bulkhead.dev/canary": "yes" },
      maxUnavailable: 3,
      failureThreshold: 2,
      deadlineSeconds: 300,
      minReadySeconds: 30,
      paused: true,
    },
    reporter: { resources: { requests: { cpu: "11m", memory: "65Mi" }, limits: { memory: "257Mi" } } },
    installer: { resources: { requests: { cpu: "21m", memory: "65Mi" }, limits: { memory: "385Mi" } } },
  },
  metrics: {
    scrapeAnnotations: false,
    prometheusOperator: { enabled: true, interval: "15s", labels: { release: "prometheus" } },
    dashboards: { enabled: true, labels: { grafana_dashboard: "yes" } },
    runbookUrl: "https://wiki.test/runbook",
  },
  statusPage: { enabled: true, expose: true },
  uninstall: { enabled: true, timeoutSeconds: 120 },
};
