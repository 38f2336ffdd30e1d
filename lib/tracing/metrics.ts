import { Counter, type Registry } from "prom-client";

/** What became of a span. */
export type SpanResult = "exported" | "failed" | "dropped";

/** Counts spans by what became of them, under `prefix`: several programs may answer one scrape. */
export const spanCounter = (
  registry: Registry,
  prefix: string,
): ((result: SpanResult, spans: number) => void) => {
  const counter = new Counter({
    name: `${prefix}trace_spans_total`,
    help: "Spans by what became of them: exported, failed (the endpoint did not take them), dropped (the queue was full)",
    labelNames: ["result"],
    registers: [registry],
  });
  for (const result of ["exported", "failed", "dropped"] as const) counter.inc({ result }, 0);
  return (result, spans) => counter.inc({ result }, spans);
};
