import { execFileSync } from "node:child_process";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { RuntimeError } from "../std/errors.ts";
import { annotate, rootSpan, span, traceFields, traceparent } from "./span.ts";
import { startTracing } from "./start.ts";

/** An endpoint that takes spans, or does not; what is in them is looked at in test/observability. */
let endpoint: Server;
let answer: number;
let posts: string[];
let counts: Record<string, number>;
let logged: string[];

beforeEach(async () => {
  answer = 200;
  posts = [];
  counts = {};
  logged = [];
  endpoint = createServer((request, response) => {
    posts.push(`${request.method} ${request.url} ${request.headers["content-type"]}`);
    request.resume().on("end", () => response.writeHead(answer).end());
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => endpoint.once("listening", resolve));
});
afterEach(() => {
  endpoint.closeAllConnections();
  endpoint.close();
});

const log = {
  info: (_: unknown, message: string) => void logged.push(`info ${message}`),
  warn: (_: unknown, message: string) => void logged.push(`warn ${message}`),
};
const tracing = (config: { endpoint?: string; samplingRatio?: number } = {}) =>
  startTracing({
    service: "test",
    version: "0",
    config: {
      endpoint: `http://127.0.0.1:${(endpoint.address() as AddressInfo).port}`,
      samplingRatio: 1,
      ...config,
    },
    env: {},
    log: log as never,
    count: (result, spans) => {
      counts[result] = (counts[result] ?? 0) + spans;
    },
  });

test("without an endpoint work is done, and OpenTelemetry is not loaded", () => {
  // A process of its own: this one has it.
  const script = `
    import { registerHooks } from "node:module";
    const loaded = [];
    registerHooks({ load: (url, context, next) => (loaded.push(url), next(url, context)) });
    const { startTracing } = await import(${JSON.stringify(new URL("start.ts", import.meta.url).href)});
    const { rootSpan, span, traceparent } = await import(${JSON.stringify(new URL("span.ts", import.meta.url).href)});
    await using _ = await startTracing({ config: { endpoint: "", samplingRatio: 1 }, env: {} });
    const result = await rootSpan("a", {}, () => span("b", {}, async () => traceparent() ?? "done"));
    console.log(JSON.stringify({ result, otel: loaded.filter((url) => /opentelemetry|otlp/.test(url)) }));`;
  const out = execFileSync(process.execPath, ["--input-type=module", "-e", script], { encoding: "utf8" });
  expect(JSON.parse(out)).toEqual({ result: "done", otel: [] });
});

test("spans are exported as OTLP in protobuf, at the latest when the program ends", async () => {
  {
    await using _ = await tracing();
    await rootSpan("root", {}, () => span("part", {}, async () => annotate({ more: 1 })));
  }
  expect(posts).toEqual(["POST /v1/traces application/x-protobuf"]);
  expect(counts).toEqual({ exported: 2 });
  expect(logged).toEqual(["info traces are exported"]);
});

test("a caller's trace goes on, and its word on sampling counts", async () => {
  const trace = "4bf92f3577b34da6a3ce929d0e0e4736";
  {
    await using _ = await tracing({ samplingRatio: 0 });
    const inside = (flags: string) =>
      rootSpan("root", { parent: `00-${trace}-00f067aa0ba902b7-${flags}` }, () =>
        span("part", {}, async () => ({ told: traceparent(), log: traceFields() })),
      );
    const sampled = await inside("01");
    expect(sampled.told).toMatch(new RegExp(`^00-${trace}-[0-9a-f]{16}-01$`));
    expect(sampled.log).toEqual({ trace_id: trace, span_id: sampled.told?.split("-")[2] });
    const unsampled = await inside("00");
    expect(unsampled.told).toMatch(new RegExp(`^00-${trace}-[0-9a-f]{16}-00$`));
    expect(unsampled.log).toEqual({});
  }
  expect(counts).toEqual({ exported: 2 });
});

test.each(["", "00-0-0-00", `00-${"0".repeat(32)}-${"0".repeat(16)}-01`, "x".repeat(100_000)])(
  "a caller's traceparent that is none begins a trace: %#",
  async (parent) => {
    await using _ = await tracing();
    expect(await rootSpan("root", { parent }, async () => traceparent())).toMatch(/^00-[0-9a-f]{32}-.*-01$/);
  },
);

test("a quiet root is told only when a part of it was a span, or it failed", async () => {
  {
    await using _ = await tracing();
    await rootSpan("nothing done", { quiet: true }, async () => {});
    expect(counts).toEqual({});
    await rootSpan("done", { quiet: true }, async () => {
      // A callee would go on with a trace whose first span is told to nobody.
      expect(traceparent()).toBeUndefined();
      await span("part", {}, async () => expect(traceparent()).toBeDefined());
    });
    const failure = new RuntimeError("unavailable", "no");
    await expect(rootSpan("failed", { quiet: true }, () => Promise.reject(failure))).rejects.toBe(failure);
  }
  expect(counts).toEqual({ exported: 3 });
});

test("what goes on after its trace ended belongs to it no more", async () => {
  await using _ = await tracing();
  let later: Promise<string | undefined> | undefined;
  await rootSpan("root", {}, async () => {
    later = sleep(5).then(() => span("late", {}, async () => traceparent()));
  });
  expect(await later).toBeUndefined();
});

test("an endpoint that is down fails no work, is logged once, and what it did not take is counted", async () => {
  answer = 400;
  const started = performance.now();
  {
    await using _ = await tracing();
    for (let n = 0; n < 3; n++) {
      await rootSpan("root", {}, async () => {});
      await expect.poll(() => posts.length, { timeout: 25_000 }).toBe(n + 1);
    }
    answer = 200;
    await rootSpan("root", {}, async () => {});
  }
  expect(counts).toEqual({ failed: 3, exported: 1 });
  expect(logged).toEqual([
    "info traces are exported",
    "warn spans cannot be exported; the work goes on",
    "info spans are exported again",
  ]);
  expect(performance.now() - started).toBeLessThan(10_000);
});

test("spans beyond the queue's bound are dropped and counted; nothing waits for an endpoint that hangs", async () => {
  endpoint.removeAllListeners("request");
  const started = performance.now();
  {
    await using _ = await tracing();
    for (let n = 0; n < 5_000; n++) await rootSpan("root", {}, async () => {});
    expect(counts.dropped).toBeGreaterThanOrEqual(5_000 - 2048 - 512);
  }
  expect(performance.now() - started).toBeLessThan(6_000);
});
