/**
 * Spans of work, as far as somebody wants them: without a tracer (lib/tracing/start.ts installs one when an endpoint is
 * configured) the work is done and nothing else. What is called within a span's work belongs to it, across awaits.
 */

/** What a span says of its work; values are cut where they leave. Never a secret, an environment or a command line. */
export type Attributes = Readonly<Record<string, string | number | boolean | undefined>>;

export type RootOptions = {
  kind?: "server";
  /** The caller's W3C traceparent: its trace goes on. Else, or when it is none, a trace begins here. */
  parent?: string | undefined;
  attributes?: Attributes;
  /** Work done again and again: nothing is told of it when it did not fail and no part of it was a span. Parts alone pass the trace on. */
  quiet?: boolean;
};

/** What stands behind the functions below. */
export type Tracer = {
  root<T>(name: string, options: RootOptions, work: () => Promise<T>): Promise<T>;
  part<T>(name: string, attributes: Attributes, work: () => Promise<T>, kind?: "client"): Promise<T>;
  annotate(attributes: Attributes): void;
  /** The span under way; `quiet`: it may never be told. */
  current(): { traceId: string; spanId: string; sampled: boolean; quiet: boolean } | undefined;
};

let tracer: Tracer | undefined;

/** From now on spans are `given`'s; undefined: nobody's. */
export const installTracer = (given: Tracer | undefined): void => {
  tracer = given;
};

/** Work that begins a trace, or goes on with its caller's. */
export const rootSpan = <T>(name: string, options: RootOptions, work: () => Promise<T>): Promise<T> =>
  tracer === undefined ? work() : tracer.root(name, options, work);

/** A part of the traced work under way. Where none is under way, or its trace is not sampled, no span. */
export const span = <T>(
  name: string,
  attributes: Attributes,
  work: () => Promise<T>,
  kind?: "client",
): Promise<T> => (tracer === undefined ? work() : tracer.part(name, attributes, work, kind));

/** Says more of the span under way. `error.type` makes it one that failed; work that throws does by itself. */
export const annotate = (attributes: Attributes): void => tracer?.annotate(attributes);

/** What a callee is told, as W3C traceparent. */
export const traceparent = (): string | undefined => {
  const now = tracer?.current();
  return now === undefined || now.quiet
    ? undefined
    : `00-${now.traceId}-${now.spanId}-0${now.sampled ? 1 : 0}`;
};

/** For each line of a log: the trace that it belongs to, by the names of OpenTelemetry's logs. */
export const traceFields = (): { trace_id?: string; span_id?: string } => {
  const now = tracer?.current();
  return now?.sampled ? { trace_id: now.traceId, span_id: now.spanId } : {};
};
