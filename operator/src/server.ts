import { once } from "node:events";
import type { Server } from "node:http";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import express, { type Express } from "express";
import type { Registry } from "prom-client";

export type HttpServer = { address: string; close(): Promise<void> };

/** Splits HOST:PORT, :PORT and [V6]:PORT. */
export const parseAddress = (address: string): { host: string | undefined; port: number } => {
  const [, host, digits] = /^(.*):(\d+)$/.exec(address) ?? [];
  const port = Number(digits);
  if (digits === undefined || port > 65535) {
    throw new RuntimeError("invalid-argument", `Cannot listen on "${address}": it is not HOST:PORT`);
  }
  return { host: host ? host.replace(/^\[(.*)\]$/, "$1") : undefined, port };
};

/** /metrics, /healthz (the process lives) and /readyz (it has seen the cluster). */
export const probes = (registry: Registry, missing: () => string[]): Express => {
  const app = express();
  app.disable("x-powered-by");
  app.get("/healthz", (_request, response) => {
    response.type("text/plain").send("ok\n");
  });
  app.get("/readyz", (_request, response) => {
    const waiting = missing();
    response.type("text/plain");
    if (waiting.length === 0) response.send("ok\n");
    else response.status(503).send(`not listed yet: ${waiting.join(", ")}\n`);
  });
  app.get("/metrics", async (_request, response) => {
    response.type(registry.contentType).send(await registry.metrics());
  });
  return app;
};

/** Serves an app until it is closed; what is under way then gets a second. */
export const serve = async (address: string, app: Express): Promise<HttpServer> => {
  const { host, port } = parseAddress(address);
  const server: Server = host === undefined ? app.listen(port) : app.listen(port, host);
  await once(server, "listening");
  const bound = server.address();
  return {
    address: bound !== null && typeof bound === "object" ? `${host ?? "[::]"}:${bound.port}` : address,
    close: async () => {
      const closed = once(server, "close");
      server.close();
      server.closeIdleConnections();
      setTimeout(() => server.closeAllConnections(), 1000).unref();
      await closed;
    },
  };
};
