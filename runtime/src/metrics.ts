import type { Server } from "node:http";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import express from "express";
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";

export type Metrics = ReturnType<typeof createMetrics>;

/** Seconds from some milliseconds to a VM's start. */
const startBuckets = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

/** What the runtime counts. `pods` is read when Prometheus asks. */
export const createMetrics = (pods: () => Iterable<{ handler: string; namespace: string }>) => {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry, prefix: "bulkhead_runtime_" });
  new Gauge({
    name: "bulkhead_runtime_pods",
    help: "Pods that are ready, by handler and Kubernetes namespace.",
    labelNames: ["handler", "namespace"],
    registers: [registry],
    collect() {
      this.reset();
      for (const labels of pods()) this.inc(labels);
    },
  });
  return {
    registry,
    calls: new Counter({
      name: "bulkhead_runtime_cri_calls_total",
      help: "CRI calls by method and gRPC code.",
      labelNames: ["method", "code"],
      registers: [registry],
    }),
    callSeconds: new Histogram({
      name: "bulkhead_runtime_cri_call_seconds",
      help: "Time that CRI calls took.",
      labelNames: ["method"],
      buckets: [0.001, 0.005, ...startBuckets],
      registers: [registry],
    }),
    startSeconds: new Histogram({
      name: "bulkhead_runtime_pod_start_seconds",
      help: "Time that each phase of a pod's start took: namespaces, network, sandbox, run, create, start.",
      labelNames: ["handler", "phase"],
      buckets: startBuckets,
      registers: [registry],
    }),
  };
};

/** Measures one phase of a pod's start. */
export const timed = async <T>(
  metrics: Pick<Metrics, "startSeconds">,
  handler: string,
  phase: string,
  work: () => Promise<T>,
): Promise<T> => {
  const end = metrics.startSeconds.startTimer({ handler, phase });
  const result = await work();
  end();
  return result;
};

/** /metrics, /healthz and /readyz on HOST:PORT. */
export const serveMetrics = async (
  listen: string,
  metrics: Metrics,
  ready: () => boolean,
): Promise<Server> => {
  const [, host = "", port = ""] = /^(?:\[?([^\]]*)\]?):(\d+)$/.exec(listen) ?? [];
  const app = express();
  app.disable("x-powered-by");
  app.get("/metrics", (_request, response, next) => {
    metrics.registry
      .metrics()
      .then((text) => response.type(metrics.registry.contentType).send(text))
      .catch(next);
  });
  app.get("/healthz", (_request, response) => void response.type("text/plain").send("ok\n"));
  app.get("/readyz", (_request, response) => {
    response
      .status(ready() ? 200 : 503)
      .type("text/plain")
      .send(ready() ? "ok\n" : "not ready\n");
  });
  return await new Promise((resolve, reject) => {
    const server = app.listen(Number(port), host === "" ? "127.0.0.1" : host, (error?: Error) =>
      error
        ? reject(new RuntimeError("unavailable", `Cannot listen on ${listen}: ${messageOf(error)}`))
        : resolve(server),
    );
  });
};
