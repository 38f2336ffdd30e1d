import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { labels } from "@bulkhead/lib/api/group.ts";
import { type Client, createClient } from "@bulkhead/lib/kube/client.ts";
import { kubeconfigFile } from "@bulkhead/lib/kube/config.ts";
import type { KubeObject } from "@bulkhead/lib/kube/object.ts";
import { nodeRuntimes, nodes, runtimeProfiles } from "@bulkhead/lib/kube/resources.ts";
import { afterAll, beforeAll, expect, test } from "vitest";
import { serveSocket } from "../../node-agent/src/installer/server.ts";
import type { Desired, Report } from "../../node-agent/src/protocol.ts";
import { installCrds } from "../apiserver/crds.ts";
import { type ApiServer, startApiServer } from "../apiserver/start.ts";
import { eventually, type Operator, startOperator } from "../operator/start.ts";
import { freePort } from "../tools/free-port.ts";
import { pathOf, type Receiver, startReceiver } from "./otlp.ts";

/**
 * A change's trace from the operator to the installer's socket and back to the API, by the programs themselves and the
 * Collector's receiver. Behind the socket, which is the real one, is a fake of the installer;
 * traces.cluster.test.ts has it whole.
 */

const node = "node-a";
let server: ApiServer;
let client: Client;
let receiver: Receiver;
let directory: string;
let operator: Operator;
let reporter: ChildProcess;
let socket: AsyncDisposable;

/** What came through the socket, and what the fake says back. */
const told: { desired: Desired; traceparent: string | undefined }[] = [];
let report: Report = { instance: "fake", version: 1, happenings: [], status: {} };
let news = Promise.withResolvers<void>();
const say = (phase: "Installing" | "Ready" | "Failed", message = "") => {
  const { generation, profiles } = told.at(-1)!.desired;
  report = {
    ...report,
    version: report.version + 1,
    status: {
      observedGeneration: generation,
      profiles: profiles.map(({ name, revision }) => ({ name, phase, revision, reason: phase, message })),
    },
  };
  news.resolve();
  news = Promise.withResolvers();
};

const startReporter = (...flags: string[]): ChildProcess =>
  spawn(
    "setpriv",
    [
      ...["--pdeathsig", "KILL", "--", process.execPath],
      join(import.meta.dirname, "../../node-agent/src/reporter/main.ts"),
      ...["--node-name", node, "--kubeconfig", server.kubeconfig, "--socket", join(directory, "socket")],
      ...flags,
    ],
    { stdio: "ignore" },
  );
const end = async (child: ChildProcess | undefined): Promise<void> => {
  if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
  child.kill("SIGTERM");
  await once(child, "exit");
};

beforeAll(async () => {
  [server, receiver] = await Promise.all([startApiServer(), startReceiver()]);
  directory = await mkdtemp(join(tmpdir(), "bh-change-"));
  client = createClient({ config: await kubeconfigFile(server.kubeconfig) });
  await installCrds(client);
  await client.create<KubeObject>(
    { ...nodes, metadataOnly: false },
    {
      metadata: { name: node, labels: { "kubernetes.io/os": "linux" } },
    },
  );
  socket = await serveSocket(
    join(directory, "socket"),
    {
      want: (desired, traceparent) => void told.push({ desired, traceparent }),
      report: () => report,
      newer: async (version, signal) => {
        const gone = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
        if (report.version <= version) await Promise.race([news.promise, gone]);
      },
    },
    async () => "",
    { warn: () => {} } as never,
  );
  operator = await startOperator(
    ...([server.kubeconfig, "default", "--no-leader-elect", "--trace-endpoint", receiver.http] as const),
  );
  // Its own word on sampling counts for none of the operator's traces.
  const traced = ["--trace-endpoint", receiver.http, "--trace-sampling", "0"];
  reporter = startReporter("--port", String(await freePort()), ...traced);
});
afterAll(async () => {
  await end(reporter);
  await operator?.kill("SIGKILL");
  await socket?.[Symbol.asyncDispose]();
  await client?.close();
  await receiver?.[Symbol.asyncDispose]();
  await server?.[Symbol.asyncDispose]();
  if (directory !== undefined) await rm(directory, { recursive: true });
});

const spans = async () => (await receiver.spans()).filter(({ service }) => service === "bulkhead-reporter");
const paths = async () => {
  const all = await receiver.spans();
  return (await spans()).map((span) => pathOf(span, all).join(" > "));
};
const status = (phase: string) =>
  eventually(
    `status ${phase}`,
    () => client.get(nodeRuntimes, node),
    (is) => is?.status?.profiles?.[0]?.phase === phase,
  );

test("what the reporter does about a change is of the operator's trace, until it is through; signs of life are of none", async () => {
  await client.create(runtimeProfiles, {
    metadata: { name: "traced" },
    spec: { handler: { gvisor: { flags: ["--secret-of-mine=1"] } } },
  } as never);
  await eventually(
    "the installer's word",
    async () => told.findLast(({ desired }) => desired.profiles.length === 1),
    Boolean,
  );
  say("Installing");
  await status("Installing");
  say("Ready");
  await status("Ready");
  const assign = "reconcile Node > assign";
  await expect
    .poll(paths, { timeout: 50_000 })
    .toEqual(
      expect.arrayContaining([
        `${assign} > desired state`,
        `${assign} > desired state > tell the installer`,
        `${assign} > report`,
        `${assign} > report > apply the status of NodeRuntime`,
      ]),
    );
  const all = await spans();
  const annotation = (await client.get(nodeRuntimes, node)).metadata.annotations?.[labels.traceparent] ?? "";
  const [, trace = ""] = annotation.split("-");
  expect(trace).toMatch(/^[0-9a-f]{32}$/);
  const change = told.find(({ desired }) => desired.profiles.length === 1);
  const handed = all.find(({ name, traceId }) => name === "tell the installer" && traceId === trace);
  expect(change?.traceparent).toBe(`00-${trace}-${handed?.spanId}-01`);
  expect(handed).toMatchObject({
    ...{ kind: 3, failed: false },
    attributes: { "http.request.method": "POST", "url.path": "/v1/desired" },
  });
  expect(all.filter((span) => span.name === "report" && span.traceId === trace).at(-1)?.attributes).toEqual({
    "bulkhead.generation": change?.desired.generation,
    ...{ "bulkhead.profiles": 1, "bulkhead.profiles.ready": 1, "bulkhead.happenings": 0 },
  });
  // Said again every five seconds, and alive all the time: that is nobody's trace.
  await expect.poll(() => told.length, { timeout: 15_000 }).toBeGreaterThan(told.indexOf(change!) + 2);
  expect(told.at(-1)?.traceparent).toBeUndefined();
  expect((await spans()).length).toBe(all.length);
  expect((await paths()).filter((path) => path.includes("Lease"))).toEqual([]);
  expect(JSON.stringify((await receiver.spans()).map(({ attributes }) => attributes))).not.toContain(
    "secret",
  );

  // What comes later is no part of it, and by this reporter's own sampling not told.
  say("Failed", "the canary failed");
  await status("Failed");
  await end(reporter);
  expect(reporter.exitCode).toBe(0);
  expect((await spans()).length).toBe(all.length);

  // One that begins anew does not take up what was through; its own traces begin with it.
  reporter = startReporter("--port", String(await freePort()), "--trace-endpoint", receiver.http);
  const own = async () => (await paths()).filter((path) => !path.startsWith(assign));
  await expect
    .poll(own, { timeout: 15_000 })
    .toEqual(
      expect.arrayContaining([
        "desired state > tell the installer",
        "report > apply the status of NodeRuntime",
      ]),
    );
  expect((await paths()).length - (await own()).length).toBe(all.length);
});
