import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { request } from "node:https";
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
  /** Connections that frozen or hanging requests hold. */
  open(): number;
};

/** A proxy in front of a real API server that misbehaves as networks and overloaded servers do. */
export const startProxy = async (target: KubeConfig): Promise<FaultyProxy> => {
  const to = new URL(target.server);
  const held = new Set<ServerResponse>();

  const pass = async (from: IncomingMessage, answer: ServerResponse, fault?: Fault) => {
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
      response.on("error", () => answer.destroy());
      response.pipe(answer);
    });
  };

  const server = createServer((from, answer) => {
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
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") {
    throw new RuntimeError("internal", "Cannot find the proxy's port");
  }
  const proxy: FaultyProxy = {
    config: { server: `http://127.0.0.1:${address.port}`, tls: {}, headers: async () => ({}) },
    requests: [],
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
