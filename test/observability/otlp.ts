import { spawn } from "node:child_process";
import { once } from "node:events";
import { openSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Node } from "../cluster/cluster.ts";
import { tool } from "../tools/cache.ts";
import { freePort } from "../tools/free-port.ts";

/** A span as OTLP's JSON has it, with the attributes as an object. */
export type ReceivedSpan = {
  /** service.name */
  service: string;
  name: string;
  traceId: string;
  spanId: string;
  /** "" for the first of a trace. */
  parentSpanId: string;
  /** 1 internal, 2 server, 3 client */
  kind: number;
  failed: boolean;
  attributes: Record<string, string | number | boolean>;
  startedAt: bigint;
  endedAt: bigint;
};

/** The OpenTelemetry Collector's receiver: test/tools/otlp. */
export type Receiver = AsyncDisposable & {
  /** Base URL of OTLP by HTTP. */
  http: string;
  spans(): Promise<ReceivedSpan[]>;
};

/** Starts a receiver on `host`, at free ports or at this one for HTTP. */
export const startReceiver = async (host = "127.0.0.1", httpPort?: number): Promise<Receiver> => {
  const dir = await mkdtemp(join(tmpdir(), "bh-otlp-"));
  const file = join(dir, "spans");
  const ports = { grpc: await freePort(host), http: httpPort ?? (await freePort(host)) };
  const out = openSync(file, "a");
  const child = spawn(
    tool("otlp-receiver"),
    ["-grpc", `${host}:${ports.grpc}`, "-http", `${host}:${ports.http}`],
    { stdio: ["ignore", out, "inherit"] },
  );
  for (const deadline = Date.now() + 20_000; !(await answers(host, ports.http)); await sleep(50))
    if (child.exitCode !== null || Date.now() > deadline) throw new Error("Cannot start otlp-receiver");
  return {
    http: `http://${host}:${ports.http}`,
    spans: async () => parse(await readFile(file, "utf8")),
    [Symbol.asyncDispose]: async () => {
      if (child.exitCode === null && child.signalCode === null) {
        const ended = once(child, "exit");
        child.kill("SIGTERM");
        await ended;
      }
      await rm(dir, { recursive: true, force: true });
    },
  };
};

/** A receiver as a service of a node, at the usual ports of its loopback interface. */
export const startReceiverOn = async (
  node: Node,
): Promise<Pick<Receiver, "spans" | typeof Symbol.asyncDispose>> => {
  const [unit, program, file] = ["otlp-receiver", "/usr/local/bin/otlp-receiver", "/var/tmp/spans"];
  await node.copyTo(tool("otlp-receiver"), program);
  await node.exec(["touch", file]);
  await node.exec(["systemd-run", `--unit=${unit}`, `--property=StandardOutput=append:${file}`, program]);
  return {
    spans: async () => parse(await node.readFile(file)),
    [Symbol.asyncDispose]: async () => {
      await node.exec(["systemctl", "stop", unit]);
      await node.exec(["rm", "-f", program, file]);
    },
  };
};

const answers = (host: string, port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect(port, host);
    socket.on("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.on("error", () => resolve(false));
  });

type Value = { stringValue?: string; intValue?: string; doubleValue?: number; boolValue?: boolean };
type KeyValues = { key: string; value: Value }[];
type Batch = {
  resourceSpans?: {
    resource?: { attributes?: KeyValues };
    scopeSpans?: {
      spans?: (Omit<ReceivedSpan, "service" | "failed" | "attributes" | "parentSpanId"> & {
        parentSpanId?: string;
        status?: { code?: number };
        attributes?: KeyValues;
        startTimeUnixNano: string;
        endTimeUnixNano: string;
      })[];
    }[];
  }[];
};

const plain = (attributes: KeyValues = []): ReceivedSpan["attributes"] =>
  Object.fromEntries(
    attributes.map(({ key, value }) => [
      key,
      value.stringValue ?? value.boolValue ?? Number(value.intValue ?? value.doubleValue),
    ]),
  );

/** The last line may be half written. */
const parse = (text: string): ReceivedSpan[] =>
  text
    .split("\n")
    .slice(0, -1)
    .flatMap((line) => (JSON.parse(line) as Batch).resourceSpans ?? [])
    .flatMap(({ resource, scopeSpans = [] }) =>
      scopeSpans.flatMap(({ spans = [] }) =>
        spans.map((span) => ({
          ...{ name: span.name, traceId: span.traceId, spanId: span.spanId, kind: span.kind },
          service: String(plain(resource?.attributes)["service.name"]),
          parentSpanId: span.parentSpanId ?? "",
          failed: span.status?.code === 2,
          attributes: plain(span.attributes),
          startedAt: BigInt(span.startTimeUnixNano),
          endedAt: BigInt(span.endTimeUnixNano),
        })),
      ),
    );

/** Names of the spans from the first of the trace down to `span`, those of them that came. */
export const pathOf = (span: ReceivedSpan, spans: readonly ReceivedSpan[]): string[] => {
  const above = spans.find(({ spanId }) => spanId === span.parentSpanId);
  return [...(above === undefined ? [] : pathOf(above, spans)), span.name];
};
