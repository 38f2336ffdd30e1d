import { AsyncLocalStorage } from "node:async_hooks";
import {
  type Context,
  createNoopMeter,
  type Attributes as OtelAttributes,
  type Span as OtelSpan,
  ROOT_CONTEXT,
  SpanKind,
  SpanStatusCode,
  TraceFlags,
  trace,
} from "@opentelemetry/api";
import { ExportResultCode, parseTraceParent } from "@opentelemetry/core";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-proto";
import {
  defaultResource,
  detectResources,
  envDetector,
  resourceFromAttributes,
} from "@opentelemetry/resources";
import {
  BatchSpanProcessor,
  ParentBasedSampler,
  type SpanExporter,
  TraceIdRatioBasedSampler,
  TracerProvider,
} from "@opentelemetry/sdk-trace";
import { messageOf, RuntimeError } from "../std/errors.ts";
import type { Settings } from "./settings.ts";
import type { Attributes, Tracer } from "./span.ts";
import type { TracingOptions } from "./start.ts";

/** Everything here is loaded only when an endpoint is configured. */

/** Spans that wait; beyond that they are dropped and counted. */
const queued = 2048;
/** How long spans are gathered. */
const gatherMs = 1_000;
/** How long one export is tried. */
const exportMs = 10_000;
const spanLimits = { attributeValueLengthLimit: 256, attributeCountLimit: 32 };

/** A trace as far as it runs here: what goes on after its root ended (timers, watchers) belongs to it no more. */
type Trace = { open: boolean; parts: number };
type Live = { span: OtelSpan; trace: Trace; quiet: boolean };

/** The tracer behind lib/tracing/span.ts, on OpenTelemetry's SDK and exporter. */
export const exportSpans = (
  { url, sampling }: Settings,
  {
    service,
    version,
    resource = {},
    log,
    count,
  }: Pick<TracingOptions, "service" | "version" | "resource" | "log" | "count">,
): { tracer: Tracer; shutdown(): Promise<void> } => {
  const ratio = new TraceIdRatioBasedSampler(sampling.ratio);
  const provider = new TracerProvider({
    sampler: sampling.followsCaller ? new ParentBasedSampler({ root: ratio }) : ratio,
    resource: defaultResource()
      .merge(
        resourceFromAttributes(set({ "service.name": service, "service.version": version, ...resource })),
      )
      .merge(detectResources({ detectors: [envDetector] })),
    spanLimits,
    spanProcessors: [
      new BatchSpanProcessor({
        exporter: tellingOnce(
          new OTLPTraceExporter({ url, timeoutMillis: exportMs }),
          new URL(url).host,
          log,
        ),
        maxQueueSize: queued,
        scheduledDelayMillis: gatherMs,
        selfObsMeterProvider: { getMeter: () => counting(count) },
      }),
    ],
  });
  return { tracer: tracerOn(provider.getTracer("bulkhead", version)), shutdown: () => provider.shutdown() };
};

const tracerOn = (otel: ReturnType<TracerProvider["getTracer"]>): Tracer => {
  const live = new AsyncLocalStorage<Live>();
  const now = (): Live | undefined => {
    const store = live.getStore();
    return store?.trace.open ? store : undefined;
  };
  const run = async <T>(store: Live, work: () => Promise<T>): Promise<T> => {
    try {
      return await live.run(store, work);
    } catch (error) {
      // The type alone: messages may quote what was configured. They are in the log, with the trace's id.
      mark(store.span, { "error.type": typeOf(error) });
      throw error;
    }
  };
  return {
    root: async (name, { kind, parent, attributes = {}, quiet = false }, work) => {
      const caller = parent === undefined ? null : parseTraceParent(parent);
      const context = caller
        ? trace.setSpanContext(ROOT_CONTEXT, { ...caller, isRemote: true })
        : ROOT_CONTEXT;
      const span = start(otel, name, attributes, context, kind);
      const all: Trace = { open: true, parts: 0 };
      let failed = true;
      try {
        const result = await run({ span, trace: all, quiet }, work);
        failed = false;
        return result;
      } finally {
        all.open = false;
        // A span that never ends is told to nobody.
        if (!quiet || failed || all.parts > 0) span.end();
      }
    },
    part: async (name, attributes, work, kind) => {
      const parent = now();
      if (parent === undefined || !isSampled(parent.span)) return await work();
      parent.trace.parts++;
      const span = start(otel, name, attributes, trace.setSpan(ROOT_CONTEXT, parent.span), kind);
      try {
        return await run({ span, trace: parent.trace, quiet: false }, work);
      } finally {
        span.end();
      }
    },
    annotate: (attributes) => {
      const span = now()?.span;
      if (span) mark(span, attributes);
    },
    current: () => {
      const store = now();
      if (!store) return undefined;
      const { traceId, spanId } = store.span.spanContext();
      return { traceId, spanId, sampled: isSampled(store.span), quiet: store.quiet };
    },
  };
};

const kinds = { server: SpanKind.SERVER, client: SpanKind.CLIENT };

const start = (
  otel: ReturnType<TracerProvider["getTracer"]>,
  name: string,
  attributes: Attributes,
  context: Context,
  kind: keyof typeof kinds | undefined,
): OtelSpan =>
  otel.startSpan(
    name,
    { attributes: set(attributes), kind: kind === undefined ? SpanKind.INTERNAL : kinds[kind] },
    context,
  );

const isSampled = (span: OtelSpan): boolean => (span.spanContext().traceFlags & TraceFlags.SAMPLED) !== 0;

/** Those that have a value. */
const set = (attributes: Attributes): OtelAttributes =>
  Object.fromEntries(Object.entries(attributes).filter(([, value]) => value !== undefined && value !== ""));

const mark = (span: OtelSpan, attributes: Attributes): void => {
  span.setAttributes(set(attributes));
  if (attributes["error.type"] !== undefined) span.setStatus({ code: SpanStatusCode.ERROR });
};

const typeOf = (error: unknown): string =>
  error instanceof RuntimeError ? error.code : error instanceof Error ? error.name : "_OTHER";

/** The log hears that the endpoint fails, and that it works again: not of each batch. */
const tellingOnce = (exporter: SpanExporter, endpoint: string, log: TracingOptions["log"]): SpanExporter => {
  let failing = false;
  return {
    export: (spans, done) =>
      exporter.export(spans, (result) => {
        const failed = result.code !== ExportResultCode.SUCCESS;
        if (failed && !failing)
          log.warn({ endpoint, err: messageOf(result.error) }, "spans cannot be exported; the work goes on");
        if (!failed && failing) log.info({ endpoint }, "spans are exported again");
        failing = failed;
        done(result);
      }),
    shutdown: () => exporter.shutdown(),
    ...(exporter.forceFlush && { forceFlush: () => exporter.forceFlush?.() ?? Promise.resolve() }),
  };
};

/** The SDK counts processed spans in a meter, those that its queue had no room for by error.type. */
const counting = (count: TracingOptions["count"]): ReturnType<typeof createNoopMeter> =>
  Object.assign(createNoopMeter(), {
    createCounter: (name: string) => ({
      add: (spans: number, attributes: OtelAttributes = {}): void => {
        if (name !== "otel.sdk.processor.span.processed") return;
        const why = attributes["error.type"];
        count(why === undefined ? "exported" : why === "queue_full" ? "dropped" : "failed", spans);
      },
    }),
  });
