import { createServer, type IncomingMessage, request, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";

/** A request as the proxy saw it. */
export type Seen = {
  method: string;
  path: string;
  authorization: string | undefined;
  range: string | undefined;
};

/** Answers a request instead of the registry behind, and says so by true. */
export type Interceptor = (seen: Seen, response: ServerResponse, forward: () => void) => boolean;

export type Proxy = AsyncDisposable & { url: string; host: string; seen: Seen[]; intercept: Interceptor };

/** Stands before a real registry on loopback, over TLS when it is given a certificate: records requests, and answers those that `intercept` takes. */
export const startProxy = async (
  upstream: string,
  tls?: { key: string; cert: string; ca?: string; requestCert?: boolean },
): Promise<Proxy> => {
  const seen: Seen[] = [];
  const answer = (incoming: IncomingMessage, response: ServerResponse): void => {
    const { authorization, range } = incoming.headers;
    const entry = { method: incoming.method ?? "", path: incoming.url ?? "", authorization, range };
    seen.push(entry);
    const pass = (): void => forward(upstream, incoming, response);
    if (!proxy.intercept(entry, response, pass)) pass();
  };
  // HTTP/2 is offered first, as registries do, and not spoken: who takes it fails.
  const ALPNProtocols = ["h2", "http/1.1"];
  const server =
    tls === undefined ? createServer(answer) : createTlsServer({ ALPNProtocols, ...tls }, answer);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  const proxy: Proxy = {
    url: `${tls === undefined ? "http" : "https"}://${host}`,
    host,
    seen,
    intercept: () => false,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
  return proxy;
};

const forward = (upstream: string, incoming: IncomingMessage, response: ServerResponse): void => {
  const { host: _, authorization: __, ...headers } = incoming.headers;
  const outgoing = request(
    new URL(incoming.url ?? "/", upstream),
    { method: incoming.method, headers },
    (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(response);
    },
  );
  outgoing.on("error", () => response.destroy());
  incoming.pipe(outgoing);
};
