import type { Logger } from "pino";
import type { SpanResult } from "./metrics.ts";
import { settingsOf, type TracingConfig } from "./settings.ts";
import { type Attributes, installTracer } from "./span.ts";

export type TracingOptions = {
  /** service.name, such as bulkhead-runtime. */
  service: string;
  version: string;
  /** More of the resource that all spans are of. */
  resource?: Attributes;
  config: TracingConfig;
  env?: Readonly<Record<string, string | undefined>>;
  log: Pick<Logger, "info" | "warn">;
  count: (result: SpanResult, spans: number) => void;
};

/** How long the last spans may take to leave. */
const flushMs = 2_000;

/**
 * Exports this program's spans from now on, if an endpoint is configured; only then OpenTelemetry is loaded. Nothing of
 * it ever fails or holds up the work that is traced. Disposing sends what is left, within two seconds.
 */
export const startTracing = async (options: TracingOptions): Promise<AsyncDisposable> => {
  const { config, env = process.env, log } = options;
  const settings = settingsOf(config, env);
  if (settings === undefined) return { [Symbol.asyncDispose]: async () => {} };
  if ("refused" in settings) {
    log.warn({ reason: settings.refused }, "no traces");
    return { [Symbol.asyncDispose]: async () => {} };
  }
  const { exportSpans } = await import("./otlp.ts");
  const { tracer, shutdown } = exportSpans(settings, options);
  installTracer(tracer);
  log.info({ endpoint: new URL(settings.url).host, sampling: settings.sampling }, "traces are exported");
  return {
    [Symbol.asyncDispose]: async () => {
      installTracer(undefined);
      const late = Promise.withResolvers<void>();
      const timer = setTimeout(late.resolve, flushMs);
      // What cannot be sent was logged.
      await Promise.race([shutdown().catch(() => {}), late.promise]);
      clearTimeout(timer);
    },
  };
};
