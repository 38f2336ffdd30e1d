import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer as createTlsServer, request } from "node:https";
import { setTimeout as sleep } from "node:timers/promises";
import type { KubeConfig } from "@bulkhead/lib/kube/config.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** What the proxy does to one request instead of passing it on untouched. */
export type Fault =
  | { do: "answer"; status: number; headers?: Record<string, string>; body?: unknown }
  /** Never answers. */
  | { do: "hang" }
  /** Closes the connection without an answer. */
  | { do: "cut" }
  /** Passes on and closes after so many bytes of the answer. */
  | { do: "truncate"; bytes: number }
  /** Passes on, but holds the request and the middle of the answer for so long each. */
  | { do: "slow"; ms: number }
  /** A watch: begins well, then carries nothing any more, not even an end. */
  | { do: "freeze" }
  /** A watch: one ERROR event, as a server sends that has forgotten the resource version. */
  | { do: "expire" };

export type FaultyProxy = AsyncDisposable & {
  config: KubeConfig;
  /** Lines of "METHOD path" that passed or did not. */
  requests: string[];
  /** Asked for each request; undefined passes it on. */
  fault: (method: string, path: string) => Fault | undefined;
  /** Requests that write and reached the API server: when they were passed on, and when it answered. */
  writes: { request: string; from: number; to: number | undefined }[];
  /** Nothing passes either way, and nothing ends; what waits then goes on when it is healed. */
  partition(): void;
  heal(): void;
  /** Ends all connections. */
  cut(): void;
  /** Connections that frozen or hanging requests hold. */
  open(): number;
};

/**
 * A proxy in front of a real API server that misbehaves as networks and overloaded servers do. With a certificate it is
 * asked by TLS, as the API server is.
 */
export const startProxy = async (
  target: KubeConfig,
  certificate?: { cert: string; key: string },
): Promise<FaultyProxy> => {
  const to = new URL(target.server);
  const held = new Set<ServerResponse>();
  let [gate, open] = [Promise.resolve(), () => {}];

  /** Passes the answer on piece by piece, so that a partition stops it anywhere. */
  const copy = async (response: IncomingMessage, answer: ServerResponse, ms = 0) => {
    for await (const chunk of response as AsyncIterable<Buffer>) {
      const middle = ms > 0 ? Math.ceil(chunk.length / 2) : chunk.length;
      for (const part of [chunk.subarray(0, middle), chunk.subarray(middle)]) {
        await gate;
        if (!answer.write(part)) await Promise.race([once(answer, "drain"), once(answer, "close")]);
        if (ms > 0) await sleep(ms);
      }
    }
    await gate;
    answer.end();
  };

  const pass = async (from: IncomingMessage, answer: ServerResponse, fault?: Fault) => {
    await gate;
    if (fault?.do === "slow") await sleep(fault.ms);
    if (from.socket.destroyed) return;
    const write: FaultyProxy["writes"][number] = {
      request: `${from.method} ${from.url}`,
      from: Date.now(),
      to: undefined,
    };
    if (from.method !== "GET") proxy.writes.push(write);
    const upstream = request({
      host: to.hostname,
      port: to.port,
      path: from.url,
      method: from.method,
      headers: { ...from.headers, host: to.host, ...(await target.headers()) },
      ...target.tls,
    });
    from.pipe(upstream);
    answer.on("close", () => upstream.destroy());
    upstream.on("error", () => answer.destroy());
    upstream.on("response", (response) => {
      write.to = Date.now();
      answer.writeHead(response.statusCode ?? 502, response.headers);
      answer.flushHeaders();
      if (fault?.do === "freeze") {
        held.add(answer);
        answer.on("close", () => held.delete(answer));
        response.resume();
        return;
      }
      if (fault?.do === "truncate") {
        let left = fault.bytes;
        response.on("data", (chunk: Buffer) => {
          answer.write(chunk.subarray(0, left));
          left -= chunk.length;
          if (left <= 0) setImmediate(() => answer.destroy());
        });
        response.on("end", () => answer.destroy());
        return;
      }
      copy(response, answer, fault?.do === "slow" ? fault.ms : 0).catch(() => answer.destroy());
    });
  };

  const serve = (from: IncomingMessage, answer: ServerResponse): void => {
    const method = from.method ?? "";
    const path = from.url ?? "";
    proxy.requests.push(`${method} ${path}`);
    const fault = proxy.fault(method, path);
    switch (fault?.do) {
      case "answer":
        answer.writeHead(fault.status, { "content-type": "application/json", ...fault.headers });
        answer.end(JSON.stringify(fault.body ?? { kind: "Status", code: fault.status, message: "injected" }));
        return;
      case "hang":
        held.add(answer);
        answer.on("close", () => held.delete(answer));
        return;
      case "cut":
        answer.destroy();
        return;
      case "expire":
        answer.writeHead(200, { "content-type": "application/json" });
        answer.end(
          `${JSON.stringify({
            type: "ERROR",
            object: { kind: "Status", code: 410, reason: "Expired", message: "too old resource version" },
          })}\n`,
        );
        return;
      default:
        pass(from, answer, fault).catch(() => answer.destroy());
    }
  };
  // HTTP/2 is offered first, as the API server does, and not spoken: who takes it fails.
  const ALPNProtocols = ["h2", "http/1.1"];
  const server = certificate
    ? createTlsServer({ ALPNProtocols, ...certificate }, serve)
    : createServer(serve);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") {
    throw new RuntimeError("internal", "Cannot find the proxy's port");
  }
  const proxy: FaultyProxy = {
    config: certificate
      ? { ...target, server: `https://127.0.0.1:${address.port}` }
      : { server: `http://127.0.0.1:${address.port}`, tls: {}, headers: async () => ({}) },
    requests: [],
    writes: [],
    partition: () => {
      ({ promise: gate, resolve: open } = Promise.withResolvers<void>());
    },
    heal: () => open(),
    cut: () => server.closeAllConnections(),
    fault: () => undefined,
    open: () => held.size,
    [Symbol.asyncDispose]: async () => {
      const closed = once(server, "close");
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
  return proxy;
};
