import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { readSettings } from "@bulkhead/lib/api/runtime-config.ts";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { processMetrics } from "@bulkhead/lib/std/process-metrics.ts";
import { endpointFlag, type TracingFlags, tracingFlags } from "@bulkhead/lib/tracing/flags.ts";
import { spanCounter } from "@bulkhead/lib/tracing/metrics.ts";
import { traceFields } from "@bulkhead/lib/tracing/span.ts";
import { startTracing } from "@bulkhead/lib/tracing/start.ts";
import { Command, Option } from "commander";
import { pino } from "pino";
import { Registry } from "prom-client";
import { socketPath } from "../protocol.ts";
import { BundleCheck, readManifest } from "./bundle.ts";
import { Controller } from "./controller.ts";
import { hostFacts } from "./facts.ts";
import { installed, kvmProbe, proxyOf, runtimeMetrics } from "./files.ts";
import { mountedHost } from "./host.ts";
import { acquireLock } from "./lock.ts";
import { installerMetrics } from "./metrics.ts";
import { Ownership } from "./ownership.ts";
import { serveSocket } from "./server.ts";
import { readNamedFiles } from "./settings.ts";

/**
 * The installer: root on the host, without a token and without any use of the network but to send traces where an
 * endpoint is given. It does what the typed desired state on its socket says, and nothing else. A SIGTERM ends the
 * program and changes nothing on the node: an upgrade of the agent is not an uninstall.
 */

const program = tracingFlags(new Command("bulkhead-installer"))
  .description("Brings this node to what its NodeRuntime says; talks to the reporter over a Unix socket")
  .option("--host <directory>", "where the host's root file system is mounted", "/host")
  .option("--bundle <directory>", "the files to install, with manifest.json", "/bundle")
  .option("--busybox <path>", "a static busybox: its nsenter reaches the host's namespaces", "/bin/busybox")
  .option("--socket <path>", "socket for the reporter", socketPath)
  .option("--node-name <name>", "this node, for the label of its metrics", process.env.NODE_NAME ?? "")
  .option(
    "--artifact-registry <host[:port][/path]>",
    "asked for every artifact, whatever registry its image names; empty: that one",
    "",
  )
  .option(
    "--runtime-config <json>",
    "keys of the runtime's configuration that the cluster decides about",
    "{}",
  )
  .option("--runtime-files <directory>", "files that they name; they stand in /etc/bulkhead/files", "")
  .addOption(
    new Option(
      "--trace-node-endpoint <url>",
      "the receiver as the node's own network reaches it; empty: the same",
    )
      .argParser(endpointFlag)
      .default(""),
  )
  .option("--log-level <level>", "trace, debug, info, warn or error", "info")
  .parse();
const options = program.opts<
  TracingFlags & {
    traceNodeEndpoint: string;
    host: string;
    bundle: string;
    busybox: string;
    socket: string;
    nodeName: string;
    artifactRegistry: string;
    runtimeConfig: string;
    runtimeFiles: string;
    logLevel: string;
  }
>();
const log = pino({ level: options.logLevel, base: { program: "installer" }, mixin: traceFields });
const stop = new AbortController();
for (const name of ["SIGTERM", "SIGINT"] as const) process.once(name, () => stop.abort(new Error(name)));

async function main(signal: AbortSignal): Promise<void> {
  const host = mountedHost(options.host, options.busybox);
  const manifest = await readManifest(options.bundle);
  const registry = new Registry();
  if (options.nodeName !== "") registry.setDefaultLabels({ node: options.nodeName });
  processMetrics(registry, "bulkhead_installer_");
  const { traceEndpoint: endpoint, traceSampling: samplingRatio, traceNodeEndpoint } = options;
  // Ends after the lock, which the next installer waits for.
  await using _tracing = await startTracing({
    ...{ service: "bulkhead-agent", version: manifest.version, log },
    resource: { "k8s.node.name": options.nodeName },
    config: { endpoint, samplingRatio },
    count: spanCounter(registry, "bulkhead_installer_"),
  });
  await using _lock = await acquireLock(host, installed.lock, signal, (holder) =>
    log.info({ holder }, "another installer is at work on this node"),
  );
  const ownership = new Ownership(host, installed.record);
  await ownership.load();
  const facts = await hostFacts(host, join(options.bundle, kvmProbe));
  const controller = new Controller({
    host,
    hostFacts: facts,
    ownership,
    bundle: options.bundle,
    manifest,
    check: new BundleCheck(),
    metrics: installerMetrics(registry),
    log,
    instance: randomUUID(),
    artifactRegistry: options.artifactRegistry || undefined,
    runtimeSettings: readSettings(JSON.parse(options.runtimeConfig)),
    // What is run on the node from here, such as the fetching of artifacts, has them by itself.
    runtimeProxy: proxyOf(process.env),
    runtimeFiles: () => readNamedFiles(options.runtimeFiles),
    runtimeTracing: { endpoint: traceNodeEndpoint || endpoint, samplingRatio },
  });
  /** The runtime's metrics stand on the host's loopback interface, where the reporter cannot reach them. */
  const runtime = async (): Promise<string> => {
    if (ownership.record.entries.length === 0) return "";
    const { code, stdout } = await host.fetch(`http://${runtimeMetrics}/metrics`, {
      signal,
      timeoutMs: 3000,
    });
    return code === 0 ? stdout : "";
  };
  const metrics = async (): Promise<string> =>
    `${await registry.metrics()}\n${await runtime().catch(() => "")}`;
  await using _server = await serveSocket(options.socket, controller, metrics, log);
  log.info(
    { version: manifest.version, kernel: facts.kernel, cgroup: facts.cgroup, kvm: facts.vm.kvm.runs },
    "installer started",
  );
  await controller.run(signal);
}

try {
  await main(stop.signal);
} catch (error) {
  if (!stop.signal.aborted) {
    log.fatal({ err: messageOf(error) }, "installer failed");
    process.exitCode = 1;
  }
}
// An export may linger; everything that counts is closed.
process.exit();
