import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { span, traceparent } from "@bulkhead/lib/tracing/span.ts";
import { Agent, request } from "undici";
import { type Desired, Report } from "../protocol.ts";

/** The installer, over its socket. */
export type Installer = AsyncDisposable & {
  want(desired: Desired, signal: AbortSignal): Promise<void>;
  /** The report, at once when it is newer than `after` or of another life, else when there is something new. */
  report(after: { instance: string; version: number } | undefined, signal: AbortSignal): Promise<Report>;
  /** Its metrics, in Prometheus' text format. */
  metrics(signal: AbortSignal): Promise<string>;
};

export function installerClient(socket: string): Installer {
  const dispatcher = new Agent({
    connect: { socketPath: socket },
    headersTimeout: 30_000,
    bodyTimeout: 30_000,
  });
  const ask = async (
    method: "GET" | "POST",
    path: string,
    signal: AbortSignal,
    body?: unknown,
  ): Promise<string> => {
    let answer: Awaited<ReturnType<typeof request>>;
    const trace = traceparent();
    try {
      answer = await request(`http://installer${path}`, {
        dispatcher,
        method,
        signal,
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        headers: {
          ...(body === undefined ? {} : { "content-type": "application/json" }),
          ...(trace === undefined ? {} : { traceparent: trace }),
        },
      });
    } catch (error) {
      throw new RuntimeError(
        "unavailable",
        `Cannot reach the installer at "${socket}": ${messageOf(error)}`,
        {
          cause: error,
        },
      );
    }
    const text = await answer.body.text();
    if (answer.statusCode >= 300) {
      throw new RuntimeError(
        "invalid-argument",
        `The installer answered ${answer.statusCode}: ${text.slice(0, 500)}`,
      );
    }
    return text;
  };
  return {
    want: async (desired, signal) => {
      const attributes = { "http.request.method": "POST", "url.path": "/v1/desired" };
      await span(
        "tell the installer",
        attributes,
        () => ask("POST", "/v1/desired", signal, desired),
        "client",
      );
    },
    report: async (after, signal) => {
      const query = after === undefined ? "" : `?instance=${after.instance}&after=${after.version}`;
      return Report.parse(JSON.parse(await ask("GET", `/v1/report${query}`, signal)));
    },
    metrics: (signal) => ask("GET", "/metrics", signal),
    [Symbol.asyncDispose]: () => dispatcher.destroy(),
  };
}
