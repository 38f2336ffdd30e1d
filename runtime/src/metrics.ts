import { createServer, type Server } from "node:http";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { processMetrics } from "@bulkhead/lib/std/process-metrics.ts";
import { spanCounter } from "@bulkhead/lib/tracing/metrics.ts";
import { span } from "@bulkhead/lib/tracing/span.ts";
import { Counter, Gauge, Histogram, Registry } from "prom-client";

export type Metrics = ReturnType<typeof createMetrics>;

/** Seconds from some milliseconds to a VM's start. */
const startBuckets = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

/** What the runtime counts. `pods` is read when Prometheus asks. */
export const createMetrics = (
  withoutApparmor: boolean,
  pods: () => Iterable<{ handler: string; namespace: string }>,
) => {
  const registry = new Registry();
  processMetrics(registry, "bulkhead_runtime_");
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
  new Gauge({
    name: "bulkhead_runtime_apparmor_missing",
    help: "1 where the kernel has AppArmor and the default profile could not be loaded: containers run without.",
    registers: [registry],
  }).set(withoutApparmor ? 1 : 0);
  return {
    registry,
    images: imageMetrics(registry),
    spans: spanCounter(registry, "bulkhead_runtime_"),
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

/** What is counted of pulls. */
const imageMetrics = (registry: Registry) => {
  const registers = [registry];
  const bytes = new Counter({
    name: "bulkhead_runtime_image_pull_bytes_total",
    help: "Bytes of layers that registries sent.",
    registers,
  });
  const seconds = new Histogram({
    name: "bulkhead_runtime_image_pull_seconds",
    help: "Time that pulls took, by result: pulled, failed.",
    labelNames: ["result"],
    buckets: [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800],
    registers,
  });
  return {
    pulling: (count: () => number): void => {
      new Gauge({
        name: "bulkhead_runtime_image_pulls",
        help: "Pulls under way.",
        registers,
        collect() {
          this.set(count());
        },
      });
    },
    received: (count: number): void => bytes.inc(count),
    ended: (result: "pulled" | "failed", took: number): void => seconds.observe({ result }, took),
  };
};

/** Measures one phase of a pod's start, and makes it a span of the call's trace. */
export const timed = async <T>(
  metrics: Pick<Metrics, "startSeconds">,
  handler: string,
  phase: string,
  work: () => Promise<T>,
): Promise<T> => {
  const end = metrics.startSeconds.startTimer({ handler, phase });
  const result = await span(phase, { "bulkhead.handler": handler }, work);
  end();
  return result;
};

/** /metrics (`more` is text behind our own), /healthz and /readyz on HOST:PORT. Three paths are no work for a framework, which would take 5 MB. */
export const serveMetrics = async (
  listen: string,
  metrics: Metrics,
  ready: () => boolean,
  more: () => Promise<string> = async () => "",
): Promise<Server> => {
  const [, host = "", port = ""] = /^(?:\[?([^\]]*)\]?):(\d+)$/.exec(listen) ?? [];
  const answer = async (path: string): Promise<{ status: number; type: string; text: string }> => {
    const type = "text/plain; charset=utf-8";
    switch (path) {
      case "/metrics":
        return {
          status: 200,
          type: metrics.registry.contentType,
          text: (await metrics.registry.metrics()) + (await more()),
        };
      case "/healthz":
        return { status: 200, type, text: "ok\n" };
      case "/readyz":
        return ready() ? { status: 200, type, text: "ok\n" } : { status: 503, type, text: "not ready\n" };
      default:
        return { status: 404, type, text: "not found\n" };
    }
  };
  const server = createServer((request, response) => {
    const read = request.method === "GET" || request.method === "HEAD";
    const path = (request.url ?? "").split("?", 1)[0] ?? "";
    answer(read ? path : "").then(
      ({ status, type, text }) => response.writeHead(status, { "Content-Type": type }).end(text),
      (error: unknown) => response.writeHead(500).end(`${messageOf(error)}\n`),
    );
  });
  return await new Promise((resolve, reject) => {
    server.once("error", (error) =>
      reject(new RuntimeError("unavailable", `Cannot listen on ${listen}: ${messageOf(error)}`)),
    );
    server.listen(Number(port), host === "" ? "127.0.0.1" : host, () => resolve(server));
  });
};
