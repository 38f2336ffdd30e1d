#!/usr/bin/env node
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { completion, shells } from "@bulkhead/lib/cli/completion.ts";
import { type Client, createClient } from "@bulkhead/lib/kube/client.ts";
import { loadConfig } from "@bulkhead/lib/kube/config.ts";
import { createRecorder } from "@bulkhead/lib/kube/events.ts";
import { operatorLease, runAsLeader } from "@bulkhead/lib/kube/lease.ts";
import { clientMetrics, leaderMetric } from "@bulkhead/lib/kube/metrics.ts";
import { pods } from "@bulkhead/lib/kube/resources.ts";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { processMetrics } from "@bulkhead/lib/std/process-metrics.ts";
import { type TracingFlags, tracingFlags } from "@bulkhead/lib/tracing/flags.ts";
import { spanCounter } from "@bulkhead/lib/tracing/metrics.ts";
import { traceFields } from "@bulkhead/lib/tracing/span.ts";
import { startTracing } from "@bulkhead/lib/tracing/start.ts";
import { Argument, Command, Option } from "commander";
import express from "express";
import { pino } from "pino";
import { Registry } from "prom-client";
import manifest from "../package.json" with { type: "json" };
import { check } from "./check.ts";
import { createController } from "./controller.ts";
import { addPage } from "./page/page.ts";
import { probes, serve } from "./server.ts";

type RunFlags = {
  kubeconfig?: string;
  namespace: string;
  metricsAddress: string;
  pageAddress: string;
  leaderElect: boolean;
  staleAfter: number;
  logLevel: string;
} & TracingFlags;

/** The namespace of the pod's service account. */
const ownNamespace = (): string => {
  try {
    return readFileSync("/var/run/secrets/kubernetes.io/serviceaccount/namespace", "utf8").trim();
  } catch {
    return "bulkhead-system";
  }
};

/** An identity begins with its pod: one that is gone, or an earlier life of our own, runs no more. */
const holderIsGone =
  (client: Client, namespace: string, podName: string) =>
  async (identity: string, signal: AbortSignal): Promise<boolean> => {
    const [name = "", life] = identity.split("_");
    if (name === podName) return true;
    if (life === undefined) return false;
    try {
      await client.get(pods, name, { namespace, signal });
      return false;
    } catch (error) {
      if (hasCode(error, "not-found")) return true;
      throw error;
    }
  };

const run = async (flags: RunFlags): Promise<void> => {
  const log = pino({ level: flags.logLevel, base: { program: "operator" }, mixin: traceFields });
  const stop = new AbortController();
  for (const name of ["SIGTERM", "SIGINT"] as const) {
    process.once(name, () => {
      log.info({ signal: name }, "stopping");
      stop.abort(new Error(name));
    });
  }
  await using undo = new AsyncDisposableStack();
  const registry = new Registry();
  processMetrics(registry);
  undo.use(
    await startTracing({
      ...{ service: "bulkhead-operator", version: manifest.version, log },
      config: { endpoint: flags.traceEndpoint, samplingRatio: flags.traceSampling },
      count: spanCounter(registry, "bulkhead_operator_"),
    }),
  );
  const podName = process.env.POD_NAME;
  const instance = `${podName ?? hostname()}_${randomUUID()}`;
  const config = await loadConfig(flags.kubeconfig);
  const userAgent = `bulkhead-operator/${manifest.version}`;
  const onRequest = clientMetrics(registry);
  let isOurs = () => !flags.leaderElect;
  const client = createClient({
    config,
    userAgent,
    onRequest,
    // A standby, and a leader that was stopped past its lease, write nothing.
    guard: () => {
      if (isOurs()) return;
      throw new RuntimeError("failed-precondition", `Cannot write: Lease "${operatorLease}" is not held`);
    },
  });
  undo.defer(() => client.close());
  const recorder = createRecorder({ client, controller: "bulkhead.dev/operator", instance, log });
  undo.defer(() => recorder.flush());
  const controller = createController({
    client,
    recorder,
    registry,
    log,
    staleAfterMs: flags.staleAfter * 1000,
    namespace: flags.namespace,
  });
  const http = await serve(flags.metricsAddress, probes(registry, controller.missing));
  undo.defer(() => http.close());
  let page: string | undefined;
  if (flags.pageAddress !== "") {
    const app = express().disable("x-powered-by");
    addPage(app, () => (controller.missing().length > 0 ? undefined : controller.fleet()));
    const served = await serve(flags.pageAddress, app);
    undo.defer(() => served.close());
    page = served.address;
  }
  log.info(
    { version: manifest.version, server: client.server, address: http.address, page, instance },
    "started",
  );

  const watching = controller.watch(stop.signal);
  const leads = leaderMetric(registry, operatorLease);
  if (flags.leaderElect) {
    const { namespace } = flags;
    // Connections of its own: a renewal must not wait behind thousands of writes.
    const renewing = createClient({ config, userAgent, onRequest });
    undo.defer(() => renewing.close());
    await runAsLeader(
      {
        client: renewing,
        namespace,
        name: operatorLease,
        identity: instance,
        log,
        onChange: leads,
        onRenewed: (still) => {
          isOurs = still;
        },
        // Without a pod of our own, nobody's name is a pod's.
        ...(podName ? { isGone: holderIsGone(renewing, namespace, podName) } : {}),
      },
      async (signal) => {
        await controller.work(signal);
        // What there is to tell is told while the Lease is still ours.
        await recorder.flush();
      },
      stop.signal,
    );
  } else {
    leads(true);
    await controller.work(stop.signal);
  }
  await watching;
  log.info("stopped");
};

const program = new Command("bulkhead-operator")
  .description("Makes RuntimeProfiles true: RuntimeClasses, what each node shall run, and status.")
  .version(manifest.version);

tracingFlags(program.command("run", { isDefault: true }).description("run the operator"))
  .option("--kubeconfig <file>", "kubeconfig; $KUBECONFIG or the pod's service account when left out")
  .addOption(
    new Option("--namespace <name>", "namespace of the leader election's Lease")
      .env("POD_NAMESPACE")
      .default(ownNamespace()),
  )
  .option("--metrics-address <host:port>", "where /metrics, /healthz and /readyz are served", ":8080")
  .option(
    "--page-address <host:port>",
    "where the status page is served, read only; empty: nowhere",
    "127.0.0.1:8081",
  )
  .option("--leader-elect", "work only while holding the Lease, so that several replicas can run", true)
  .option("--no-leader-elect", "work at once: the only replica")
  .addOption(
    new Option("--stale-after <seconds>", "an agent silent for longer counts as unreachable")
      .argParser(Number)
      .default(180),
  )
  .addOption(
    new Option("--log-level <level>", "least level to log")
      .choices(["trace", "debug", "info", "warn", "error"])
      .default("info"),
  )
  .action(async (flags: RunFlags) => {
    try {
      await run(flags);
      // An export may linger; everything that counts is closed.
      process.exit();
    } catch (error) {
      process.stderr.write(`bulkhead-operator: ${messageOf(error)}\n`);
      // A lease that was lost, or a setting that is wrong: whoever runs this starts it anew.
      process.exit(1);
    }
  });

program
  .command("check")
  .description(
    "look whether the cluster serves Bulkhead's resources and an operator works: what helm test runs",
  )
  .option("--kubeconfig <file>", "kubeconfig; $KUBECONFIG or the pod's service account when left out")
  .addOption(
    new Option("--namespace <name>", "namespace of the operator's Lease")
      .env("POD_NAMESPACE")
      .default(ownNamespace()),
  )
  .action(async (flags: { kubeconfig?: string; namespace: string }) => {
    const client = createClient({
      config: await loadConfig(flags.kubeconfig),
      userAgent: `bulkhead-operator/${manifest.version}`,
    });
    try {
      const { profiles, holder } = await check(client, flags.namespace);
      process.stdout.write(`The operator works (${holder}); ${profiles} RuntimeProfiles.\n`);
    } catch (error) {
      process.stderr.write(`bulkhead-operator: ${messageOf(error)}\n`);
      process.exitCode = 1;
    } finally {
      await client.close();
    }
  });

program
  .command("version")
  .description("print the version")
  .action(() => {
    process.stdout.write(`${manifest.version}\n`);
  });

program
  .command("completion")
  .description("print a completion script")
  .addArgument(new Argument("<shell>").choices(shells))
  .action((shell: (typeof shells)[number]) => void process.stdout.write(completion(program, shell)));

await program.parseAsync();
