import { chmod, chown, mkdir, rm } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import { dirname } from "node:path";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import express, { type NextFunction, type Request, type Response } from "express";
import type { Logger } from "pino";
import { Desired, type Report } from "../protocol.ts";

type Served = {
  want(desired: Desired, traceparent?: string): void;
  report(): Report;
  newer(version: number, signal: AbortSignal): Promise<void>;
};

/** Group of the reporter's container (the chart gives it), which may connect. */
const reporterGroup = 64473;

/** A hundred profiles with every flag that they may have are well below it. */
const bodyLimit = 1 << 20;

/** The socket that the reporter talks to. It takes a typed desired state and nothing else. */
export async function serveSocket(
  path: string,
  controller: Served,
  metrics: () => Promise<string>,
  log: Logger,
): Promise<AsyncDisposable> {
  const app = express();
  app.disable("x-powered-by");
  app.use(express.json({ limit: bodyLimit }));
  app.post("/v1/desired", (request, response) => {
    const parsed = Desired.safeParse(request.body);
    if (!parsed.success) {
      const where = parsed.error.issues
        .slice(0, 10)
        .map(({ path, message }) => (path.length > 0 ? `${path.join(".")}: ${message}` : message))
        .join("; ")
        .slice(0, 2000);
      log.warn({ where }, "desired state refused");
      response.status(400).json({ message: where });
      return;
    }
    controller.want(parsed.data, request.get("traceparent"));
    response.status(204).end();
  });
  app.get("/v1/report", async (request, response) => {
    const after = Number(request.query.after ?? -1);
    const instance = controller.report().instance;
    if (request.query.instance === instance) {
      const gone = new AbortController();
      response.on("close", () => gone.abort());
      await controller.newer(after, AbortSignal.any([gone.signal, AbortSignal.timeout(20_000)]));
    }
    response.json(controller.report());
  });
  app.get("/metrics", async (_, response) => {
    response.type("text/plain; version=0.0.4; charset=utf-8").send(await metrics());
  });
  app.use((request, response) => {
    response
      .status(404)
      .json({ message: `Cannot ${request.method} ${request.path}: there is no such thing` });
  });
  app.use((error: unknown, _request: Request, response: Response, _next: NextFunction) => {
    const status = error instanceof Error && "status" in error ? Number(error.status) : 500;
    const message =
      status === 413 ? `Cannot take more than ${bodyLimit / 1024} KiB of desired state` : messageOf(error);
    log.warn({ status, err: message }, "request refused");
    response.status(status).json({ message });
  });

  await mkdir(dirname(path), { recursive: true });
  await rm(path, { force: true });
  const server: Server = createServer(app);
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject).listen(path, resolve);
  });
  await chown(path, 0, reporterGroup);
  await chmod(path, 0o660);
  return {
    [Symbol.asyncDispose]: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
