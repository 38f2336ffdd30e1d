import { readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { canaryImage, canaryNamespace } from "@bulkhead/lib/api/group.ts";
import { connectCri } from "@bulkhead/lib/cri/client.ts";
import { rootSpan } from "@bulkhead/lib/tracing/span.ts";
import { startTracing } from "@bulkhead/lib/tracing/start.ts";
import { afterAll, beforeAll, expect, test } from "vitest";
import { runCanary } from "../../node-agent/src/probe/canary.ts";
import { createDaemon, type Daemon } from "../cri/daemon.ts";
import { ensureTestImages } from "../images/build.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { inCache } from "../tools/cache.ts";
import { pathOf, type ReceivedSpan, type Receiver, startReceiver } from "./otlp.ts";

/** What the runtime tells of a pod's start to the OpenTelemetry Collector's own receiver. */

let receiver: Receiver;
let registry: RunningRegistry;
let daemon: Daemon;
const loaded = join(tmpdir(), `bh-loaded-${process.pid}`);

/** The canaries' log directory. */
const logs = {
  node: join(tmpdir(), `bh-canary-${process.pid}`),
  here: join(tmpdir(), `bh-canary-${process.pid}`),
};

/** Writes down the modules that a daemon loads whose names say OpenTelemetry. */
const hook = `${loaded}.mjs`;
const watched = `import { registerHooks } from "node:module";
import { appendFileSync } from "node:fs";
registerHooks({ load(url, context, next) {
  if (/opentelemetry|tracing.otlp/.test(url)) appendFileSync(process.env.LOADED, url + "\\n");
  return next(url, context);
} });`;

beforeAll(async () => {
  receiver = await startReceiver();
  registry = await startRegistry({ dir: inCache("cri-registry") });
  await ensureTestImages(registry.host, ["canary:1"]);
  await writeFile(hook, watched);
  const environment = [
    `OTEL_EXPORTER_OTLP_ENDPOINT=${receiver.http}`,
    "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=tests",
    `NODE_OPTIONS=--import=${pathToFileURL(hook).href}`,
    `LOADED=${loaded}`,
  ];
  daemon = await createDaemon({ registry: registry.host, subnet: 84, under: ["env", ...environment] });
  await daemon.start();
});
afterAll(async () => {
  await daemon?.[Symbol.asyncDispose]();
  await registry?.stop();
  await receiver?.[Symbol.asyncDispose]();
  for (const file of [loaded, hook]) await rm(file, { force: true });
});

/** Runs a canary with spans of our own around it, as the agent does; what came of its trace. */
const canaryTrace = async (handler: string): Promise<ReceivedSpan[]> => {
  let traceId = "";
  {
    await using _ = await startTracing({
      ...{ service: "test", version: "0", env: {}, count: () => {} },
      config: { endpoint: receiver.http, samplingRatio: 1 },
      log: { info: () => {}, warn: () => {} } as never,
    });
    using cri = connectCri(daemon.socket);
    await cri.image.removeImage({ image: { image: canaryImage } }, AbortSignal.timeout(10_000));
    await rootSpan("a caller", {}, () => runCanary(cri, handler, AbortSignal.timeout(60_000), { logs }));
  }
  const own = async (): Promise<ReceivedSpan[]> => {
    const spans = await receiver.spans();
    traceId = spans.findLast(({ name }) => name === "a caller")?.traceId ?? "";
    return spans.filter((span) => span.traceId === traceId);
  };
  await expect
    .poll(async () => (await own()).map(({ name }) => name), { timeout: 20_000 })
    .toContain("runtime.v1.RuntimeService/RemovePodSandbox");
  return await own();
};

const call = (name: string): string[] => ["a caller", `runtime.v1.RuntimeService/${name}`];

test("a pod's start under runc is one trace with its caller: each call, its phases, and what they ran", async () => {
  const spans = await canaryTrace("runc");
  const paths = spans.map((span) => pathOf(span, spans).join(" > "));
  for (const path of [
    ["a caller", "runtime.v1.ImageService/PullImage", "resolve image"],
    ["a caller", "runtime.v1.ImageService/PullImage", "fetch layer"],
    ["a caller", "runtime.v1.ImageService/PullImage", "unpack layer"],
    [...call("RunPodSandbox"), "namespaces"],
    [...call("RunPodSandbox"), "network", "cni bridge ADD"],
    [...call("RunPodSandbox"), "sandbox"],
    [...call("CreateContainer"), "create", "rootfs"],
    [...call("CreateContainer"), "create", "runc create"],
    [...call("StartContainer"), "start", "runc start"],
    [...call("ContainerStatus")],
  ])
    expect(paths).toContain(path.join(" > "));
  for (const span of spans) {
    const above = spans.find(({ spanId }) => spanId === span.parentSpanId);
    if (above === undefined) expect(span.name).toBe("a caller");
    else {
      expect(span.startedAt, span.name).toBeGreaterThanOrEqual(above.startedAt - 2_000_000n);
      expect(span.endedAt, span.name).toBeLessThanOrEqual(above.endedAt + 2_000_000n);
    }
    expect(span.failed, span.name).toBe(false);
  }
});

test("spans say which pod, container, handler and image, by OpenTelemetry's names, and nothing else", async () => {
  const spans = await canaryTrace("runc");
  const of = (method: string) => spans.find(({ name }) => name === `runtime.v1.RuntimeService/${method}`);
  const run = of("RunPodSandbox");
  expect(run).toMatchObject({ service: "bulkhead-runtime", kind: 2 });
  expect(run?.attributes).toEqual({
    "rpc.system.name": "grpc",
    "rpc.method": "runtime.v1.RuntimeService/RunPodSandbox",
    "rpc.status_code": "OK",
    "k8s.pod.name": "canary-runc",
    "k8s.namespace.name": canaryNamespace,
    "k8s.pod.uid": expect.stringMatching(/^[0-9a-f-]{36}$/),
    "bulkhead.handler": "runc",
  });
  expect(of("CreateContainer")?.attributes).toMatchObject({
    "k8s.pod.name": "canary-runc",
    "k8s.container.name": "canary",
    "container.image.name": canaryImage,
  });
  expect(of("StartContainer")?.attributes).toMatchObject({ "k8s.pod.name": "canary-runc" });
  // The canary's command, and what it printed.
  expect(JSON.stringify(spans.map(({ attributes }) => attributes))).not.toMatch(/sleep|\/bin\/|3600\./);
});

test("a pod's start under gVisor shows the shim's start and each call to it", async () => {
  const spans = await canaryTrace("gvisor");
  const paths = spans.map((span) => pathOf(span, spans).join(" > "));
  const sandbox = [...call("RunPodSandbox"), "sandbox"];
  expect(paths).toContain([...sandbox, "containerd-shim-runsc-v1 start"].join(" > "));
  expect(paths.some((path) => path.startsWith(`${sandbox.join(" > ")} > containerd.task.v`))).toBe(true);
  expect(
    paths.some((path) => /StartContainer > start > containerd\.task\.v\d\.Task\/Start$/.test(path)),
  ).toBe(true);
});

test("a call that fails is a span that failed, with its code; its words are in the log, with the trace's id", async () => {
  using cri = connectCri(daemon.socket);
  const refused = await cri.runtime
    .runPodSandbox({ config: { metadata: { name: "x".repeat(1000), uid: "" } } }, AbortSignal.timeout(10_000))
    .catch((error: unknown) => String(error));
  expect(refused).toContain("without a name and a uid");
  // Of the daemon's other work, such as a shim that is gone before its connection is closed, a span may fail as well.
  const failed = async () =>
    (await receiver.spans()).findLast(
      (span) => span.failed && span.name === "runtime.v1.RuntimeService/RunPodSandbox",
    );
  await expect.poll(failed, { timeout: 50_000 }).toBeDefined();
  const span = await failed();
  expect(span).toMatchObject({
    parentSpanId: "",
    attributes: { "error.type": "INVALID_ARGUMENT", "k8s.pod.name": "x".repeat(256) },
  });
  const lines = (await readFile(daemon.logFile, "utf8"))
    .split("\n")
    .filter((line) => line.includes(span?.traceId ?? "-"));
  expect(lines.map((line) => JSON.parse(line))).toEqual([
    expect.objectContaining({ msg: "rpc", level: "warn", trace_id: span?.traceId, span_id: span?.spanId }),
  ]);
});

test("what a kubelet asks every second begins no trace", async () => {
  const before = (await receiver.spans()).length;
  for (const command of [["pods"], ["ps", "-a"], ["images"], ["info"], ["version"]])
    await daemon.crictl(...command);
  using cri = connectCri(daemon.socket);
  // One that does, to know that all would have come.
  await cri.image.removeImage({ image: { image: "not.there/at-all:1" } }, AbortSignal.timeout(10_000));
  await expect.poll(async () => (await receiver.spans()).length, { timeout: 50_000 }).toBe(before + 1);
});

test("a receiver that is gone costs no pod, and is told once", async () => {
  await receiver[Symbol.asyncDispose]();
  using cri = connectCri(daemon.socket);
  for (let n = 0; n < 2; n++) await runCanary(cri, "runc", AbortSignal.timeout(60_000), { logs });
  const told = async () =>
    (await readFile(daemon.logFile, "utf8")).split("spans cannot be exported").length - 1;
  await expect.poll(told, { timeout: 30_000 }).toBe(1);
  // The daemon ends in time with spans that nobody takes.
  await runCanary(cri, "runc", AbortSignal.timeout(60_000), { logs });
  const started = performance.now();
  await daemon.end("SIGTERM");
  expect(performance.now() - started).toBeLessThan(5_000);
  expect(await told()).toBe(1);
});

test("without an endpoint the daemon loads no tracer and no exporter; with one it did", async () => {
  expect(await readFile(loaded, "utf8")).toMatch(/sdk-trace/);
  await rm(loaded);
  const quiet = await createDaemon({
    ...{ registry: registry.host, subnet: 85 },
    under: ["env", `NODE_OPTIONS=--import=${pathToFileURL(hook).href}`, `LOADED=${loaded}`],
  });
  await using _ = quiet;
  await quiet.start();
  using cri = connectCri(quiet.socket);
  await runCanary(cri, "runc", AbortSignal.timeout(60_000), { logs });
  // prom-client takes OpenTelemetry's API along for its exemplars, with or without traces.
  const all = (await readFile(loaded, "utf8").catch(() => "")).split("\n").filter((url) => url !== "");
  expect(all.filter((url) => !url.includes("@opentelemetry/api/"))).toEqual([]);
});
