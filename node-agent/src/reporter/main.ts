import { createServer, type Server } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { fieldManager } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime, NodeRuntimeStatus } from "@bulkhead/lib/api/node-runtime.ts";
import { createClient } from "@bulkhead/lib/kube/client.ts";
import { loadConfig } from "@bulkhead/lib/kube/config.ts";
import { createRecorder } from "@bulkhead/lib/kube/events.ts";
import { clientMetrics } from "@bulkhead/lib/kube/metrics.ts";
import { createReflector } from "@bulkhead/lib/kube/reflector.ts";
import { nodeRuntimes } from "@bulkhead/lib/kube/resources.ts";
import { hasCode, messageOf } from "@bulkhead/lib/std/errors.ts";
import { processMetrics } from "@bulkhead/lib/std/process-metrics.ts";
import { type TracingFlags, tracingFlags } from "@bulkhead/lib/tracing/flags.ts";
import { spanCounter } from "@bulkhead/lib/tracing/metrics.ts";
import { rootSpan, traceFields } from "@bulkhead/lib/tracing/span.ts";
import { startTracing } from "@bulkhead/lib/tracing/start.ts";
import { Command } from "commander";
import express from "express";
import { pino } from "pino";
import { Registry } from "prom-client";
import { type Desired, isThrough, type Report, socketPath } from "../protocol.ts";
import { installerClient } from "./installer.ts";
import { createSigns } from "./sign-of-life.ts";
import { isNews, isSettled, newHappenings, noteOf, statusToWrite, withReadySince } from "./status.ts";
import { createStory } from "./story.ts";

/**
 * The reporter: the API token and no rights on the host. It hands the node's NodeRuntime.spec to the installer and
 * writes what the installer reports to NodeRuntime.status and Events. It keeps nothing: killed at any time, it
 * starts anew from both sides.
 */

const program = tracingFlags(new Command("bulkhead-reporter"))
  .description("Speaks for this node with the Kubernetes API")
  .requiredOption("--node-name <name>", "this node", process.env.NODE_NAME)
  .option("--agent-version <version>", "shown in the status", process.env.AGENT_VERSION ?? "dev")
  .option("--kubeconfig <file>", "the pod's service account when left out")
  .option("--socket <path>", "the installer's socket", socketPath)
  .option("--port <port>", "of /metrics, /healthz and /readyz", "9473")
  .option("--log-level <level>", "trace, debug, info, warn or error", "info")
  .parse();
const options = program.opts<
  TracingFlags & {
    nodeName: string;
    agentVersion: string;
    kubeconfig?: string;
    socket: string;
    port: string;
    logLevel: string;
  }
>();
const base = { program: "reporter", node: options.nodeName };
const log = pino({ level: options.logLevel, base, mixin: traceFields });
const stop = new AbortController();
for (const name of ["SIGTERM", "SIGINT"] as const) process.once(name, () => stop.abort(new Error(name)));

/** The desired state is said again so often: an installer that was restarted waits for it. */
const repeatMs = 5_000;

async function main(signal: AbortSignal): Promise<void> {
  const { nodeName, agentVersion } = options;
  const registry = new Registry();
  processMetrics(registry, "bulkhead_reporter_");
  await using _tracing = await startTracing({
    ...{ service: "bulkhead-reporter", version: agentVersion, log },
    resource: { "k8s.node.name": nodeName },
    config: { endpoint: options.traceEndpoint, samplingRatio: options.traceSampling },
    count: spanCounter(registry, "bulkhead_reporter_"),
  });
  const client = createClient({
    config: await loadConfig(options.kubeconfig),
    onRequest: clientMetrics(registry),
    userAgent: `bulkhead-reporter/${agentVersion}`,
  });
  await using installer = installerClient(options.socket);
  const recorder = createRecorder({ client, controller: fieldManager.agent, instance: nodeName, log });
  const reflector = createReflector({
    client,
    resource: nodeRuntimes,
    fieldSelector: `metadata.name=${nodeName}`,
    log,
  });
  let reported: Report | undefined;
  /** Once for all: what fails later is told by the status. */
  let settled = false;
  await using _server = await serve(
    Number(options.port),
    registry,
    () => reflector.isSynced && settled,
    () => installer.metrics(AbortSignal.timeout(2000)),
  );

  let changed: () => void = () => undefined;
  reflector.on(() => changed());
  const own = (): NodeRuntime | undefined => reflector.store.get(nodeName);

  const story = createStory();
  /** Tells the installer what is wanted: as it changes, and again and again. */
  const tell = async (): Promise<void> => {
    let told: string | undefined;
    await Promise.race([reflector.synced, aborted(signal)]);
    while (!signal.aborted) {
      const change = new Promise<void>((resolve) => {
        changed = resolve;
      });
      const runtime = own();
      const desired: Desired = {
        generation: runtime?.metadata.generation ?? 0,
        // A NodeRuntime on its way out wants nothing any more.
        profiles: runtime?.spec.profiles ?? [],
      };
      const { generation, profiles } = desired;
      const key = `${runtime?.metadata.uid} ${generation}`;
      const attributes = { "bulkhead.generation": generation, "bulkhead.profiles": profiles.length };
      const parent = story.parentOf(runtime);
      try {
        // Said again it is no news.
        if (key === told) await installer.want(desired, signal);
        else await rootSpan("desired state", { parent, attributes }, () => installer.want(desired, signal));
        told = key;
      } catch (error) {
        if (!signal.aborted) log.warn({ err: messageOf(error) }, "installer not told");
      }
      const cancel = new AbortController();
      await Promise.race([
        change,
        sleep(repeatMs, undefined, { signal: AbortSignal.any([signal, cancel.signal]) }),
      ]).catch(() => undefined);
      cancel.abort();
    }
  };

  const lease = createSigns(client, log);
  let seen: { instance: string; seq: number } | undefined;
  let last: { status: NodeRuntimeStatus; at: number; uid: string | undefined } | undefined;
  const write = async (report: Report): Promise<void> => {
    const runtime = own();
    if (runtime === undefined) return;
    const { uid, generation = 0 } = runtime.metadata;
    const happenings = newHappenings(report, seen);
    for (const happening of happenings) {
      recorder.emit({
        regarding: {
          apiVersion: nodeRuntimes.apiVersion,
          kind: "NodeRuntime",
          name: nodeName,
          ...(uid ? { uid } : {}),
        },
        type: happening.type,
        reason: happening.reason,
        action: happening.reason,
        note: noteOf(happening),
      });
    }
    seen = { instance: report.instance, seq: report.happenings.at(-1)?.seq ?? 0 };
    const now = Date.now();
    const before = last?.uid === uid ? last : undefined;
    const signed = before !== undefined && (await lease.renew(runtime, signal));
    const said = withReadySince(report.status, (before?.status ?? runtime.status)?.profiles, now);
    const status = statusToWrite(said, agentVersion, before, now, signed);
    const apply = async (): Promise<void> => {
      if (status === undefined) return;
      await client.applyStatus(
        nodeRuntimes,
        { apiVersion: nodeRuntimes.apiVersion, kind: "NodeRuntime", metadata: { name: nodeName }, status },
        { fieldManager: fieldManager.agent, force: true, signal },
      );
      last = { status, at: now, uid };
    };
    // Signs of life are no news.
    if (happenings.length === 0 && !isNews(said, agentVersion, before)) return await apply();
    const { profiles = [], observedGeneration } = report.status;
    const attributes = {
      "bulkhead.generation": observedGeneration,
      "bulkhead.profiles": profiles.length,
      "bulkhead.profiles.ready": profiles.filter(({ phase }) => phase === "Ready").length,
      "bulkhead.happenings": happenings.length,
    };
    await rootSpan("report", { parent: story.parentOf(runtime), attributes }, apply);
    if (isThrough(report.status, generation)) story.through(runtime);
  };

  /** Takes the installer's reports and writes them. */
  const listen = async (): Promise<void> => {
    await Promise.race([reflector.synced, aborted(signal)]);
    for (let failures = 0; !signal.aborted; ) {
      try {
        reported = await installer.report(reported, signal);
        settled ||= isSettled(reported.status, own()?.metadata.generation ?? 0);
        await write(reported);
        failures = 0;
      } catch (error) {
        if (signal.aborted) return;
        failures++;
        // A NodeRuntime that went in between is no failure.
        if (!hasCode(error, "not-found")) log.warn({ err: messageOf(error) }, "status not written");
        // Asked at once again, the same report would come only with the next change.
        reported = undefined;
        await sleep(Math.min(200 * 2 ** failures, 10_000), undefined, { signal }).catch(() => undefined);
      }
    }
  };

  log.info({ version: agentVersion }, "reporter started");
  await Promise.all([reflector.run(signal), tell(), listen()]);
  await recorder.flush();
  await client.close();
}

const aborted = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });

/** /healthz, /readyz, and /metrics of both containers: the installer has no port of its own. */
async function serve(
  port: number,
  registry: Registry,
  ready: () => boolean,
  others: () => Promise<string>,
): Promise<AsyncDisposable> {
  const app = express();
  app.disable("x-powered-by");
  app.get("/healthz", (_, response) => {
    response.type("text").send("ok");
  });
  app.get("/readyz", (_, response) => {
    response
      .status(ready() ? 200 : 503)
      .type("text")
      .send(ready() ? "ok" : "waiting until what is wanted of this node is in place and proven");
  });
  app.get("/metrics", async (_, response) => {
    const theirs = await others().catch(() => "");
    response.type(registry.contentType).send(`${await registry.metrics()}\n${theirs}`);
  });
  const server: Server = createServer(app);
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject).listen(port, resolve);
  });
  return {
    [Symbol.asyncDispose]: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

try {
  await main(stop.signal);
} catch (error) {
  if (!stop.signal.aborted) {
    log.fatal({ err: messageOf(error) }, "reporter failed");
    process.exitCode = 1;
  }
}
// An export may linger; everything that counts is closed.
process.exit();
