import { Counter, Gauge, Histogram, type Registry } from "prom-client";
import type { ClientOptions } from "./client.ts";
import type { QueueObserver } from "./workqueue.ts";

const seconds = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60];

/** Queue and reconcile metrics under controller-runtime's names, so that existing dashboards and alerts fit. */
export const queueMetrics = (registry: Registry): ((controller: string) => QueueObserver) => {
  const registers = [registry];
  const byName = { labelNames: ["name", "controller"] as const, registers };
  const byController = { labelNames: ["controller"] as const, registers };
  const depth = new Gauge({ name: "workqueue_depth", help: "Keys waiting in the queue", ...byName });
  const adds = new Counter({ name: "workqueue_adds_total", help: "Keys added to the queue", ...byName });
  const retries = new Counter({
    name: "workqueue_retries_total",
    help: "Keys added again after a failure",
    ...byName,
  });
  const waited = new Histogram({
    name: "workqueue_queue_duration_seconds",
    help: "How long a key waits before it is worked on",
    buckets: seconds,
    ...byName,
  });
  const worked = new Histogram({
    name: "workqueue_work_duration_seconds",
    help: "How long a key is worked on",
    buckets: seconds,
    ...byName,
  });
  const total = new Counter({
    name: "controller_runtime_reconcile_total",
    help: "Reconciles by result",
    labelNames: ["controller", "result"] as const,
    registers,
  });
  const errors = new Counter({
    name: "controller_runtime_reconcile_errors_total",
    help: "Reconciles that failed",
    ...byController,
  });
  const time = new Histogram({
    name: "controller_runtime_reconcile_time_seconds",
    help: "How long a reconcile takes",
    buckets: seconds,
    ...byController,
  });
  const active = new Gauge({
    name: "controller_runtime_active_workers",
    help: "Keys worked on now",
    ...byController,
  });
  return (controller) => {
    const labels = { name: controller, controller };
    depth.set(labels, 0);
    for (const result of ["success", "error", "requeue_after"]) total.inc({ controller, result }, 0);
    errors.inc({ controller }, 0);
    return {
      depth: (value) => depth.set(labels, value),
      added: () => adds.inc(labels),
      retried: () => retries.inc(labels),
      started: (wait) => {
        waited.observe(labels, wait);
        active.inc({ controller });
      },
      finished: (work, result) => {
        worked.observe(labels, work);
        time.observe({ controller }, work);
        total.inc({ controller, result });
        if (result === "error") errors.inc({ controller });
        active.dec({ controller });
      },
    };
  };
};

/** client-go's request metrics. */
export const clientMetrics = (registry: Registry): NonNullable<ClientOptions["onRequest"]> => {
  const requests = new Counter({
    name: "rest_client_requests_total",
    help: "Requests to the API server by method and code",
    labelNames: ["method", "code"] as const,
    registers: [registry],
  });
  const duration = new Histogram({
    name: "rest_client_request_duration_seconds",
    help: "Time to the API server's answer",
    labelNames: ["verb"] as const,
    buckets: seconds,
    registers: [registry],
  });
  return ({ method, code, ms }) => {
    requests.inc({ method, code });
    duration.observe({ verb: method }, ms / 1000);
  };
};

/** client-go's leader election gauge: 1 while this process leads. */
export const leaderMetric = (registry: Registry, name: string): ((leads: boolean) => void) => {
  const gauge = new Gauge({
    name: "leader_election_master_status",
    help: "1 while this process is the leader",
    labelNames: ["name"] as const,
    registers: [registry],
  });
  gauge.set({ name }, 0);
  return (leads) => gauge.set({ name }, leads ? 1 : 0);
};
