import { createHash } from "node:crypto";
import type { Agent, Dispatcher } from "undici";
import { readTrust, type Trust } from "./endpoint.ts";
import { EndpointError } from "./endpoint-error.ts";
import { proxyFor } from "./proxy-env.ts";
import { discard, headerOf, reasonOf } from "./response.ts";

/** A megabyte of program that a node needs when it pulls: loaded by the first pull. */
const undici = async () => (await import("undici")).default;

export type TransportOptions = {
  /** Folder of HOST/{*.crt,*.cert,*.key}, for hosts whose endpoint says nothing of TLS. */
  certsDir?: string | undefined;
  /** How long a peer may be silent in the middle of an answer. */
  silenceMs?: number | undefined;
};

/** A request, and how its host is trusted. Headers beyond accept and range are for this origin alone. */
export type Ask = { url: URL; headers: Readonly<Record<string, string>>; trust: Trust };

const maxRedirects = 5;
const maxPools = 64;
const redirects: readonly number[] = [301, 302, 303, 307, 308];

/**
 * HTTP to registries: connections are kept by origin and by what TLS was checked with, so that nobody uses a
 * connection made under looser rules than his own.
 */
export class Transport implements AsyncDisposable {
  readonly #options: TransportOptions;
  readonly #pools = new Map<string, Promise<Dispatcher>>();

  constructor(options: TransportOptions) {
    this.#options = options;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled([...this.#pools.values()].map(async (pool) => (await pool).destroy()));
    this.#pools.clear();
  }

  /** What a host is trusted by when no endpoint's configuration says it. */
  trustOf(url: URL): Promise<Trust> {
    return url.protocol === "https:" ? readTrust(this.#options.certsDir, url.host) : Promise.resolve({});
  }

  /**
   * GET with redirects followed. Authorization and configured headers stay with the origin that they are for, and
   * whoever answers a challenge must look at `origin`: another host's challenge is not the registry's
   * (CVE-2020-15157).
   */
  async get(start: Ask, signal: AbortSignal): Promise<{ response: Dispatcher.ResponseData; origin: string }> {
    let { url, headers, trust } = start;
    for (let hop = 0; hop <= maxRedirects; hop++) {
      const response = await this.exchange({ url, headers, trust }, "GET", undefined, signal);
      const location = headerOf(response, "location");
      if (!redirects.includes(response.statusCode) || location === undefined)
        return { response, origin: url.origin };
      await discard(response);
      const next = redirectTarget(url, location);
      if (next === undefined) {
        throw new EndpointError("invalid", `${url.origin} redirects to a place that is not safe to follow`);
      }
      if (next.origin !== url.origin) {
        const { accept, range } = headers;
        headers = { ...(accept !== undefined && { accept }), ...(range !== undefined && { range }) };
        trust = await this.trustOf(next);
      }
      url = next;
    }
    throw new EndpointError("invalid", `${start.url.origin} redirects more than ${maxRedirects} times`);
  }

  /** One request, redirects left to the caller. */
  async exchange(
    { url, headers, trust }: Ask,
    method: "GET" | "POST",
    content: string | undefined,
    signal: AbortSignal,
  ): Promise<Dispatcher.ResponseData> {
    const dispatcher = await this.#pool(url, trust);
    try {
      const { request } = await undici();
      return await request(url, {
        method,
        headers: { "user-agent": "bulkhead", ...headers },
        body: content ?? null,
        dispatcher,
        signal,
      });
    } catch (cause) {
      signal.throwIfAborted();
      const proxy = proxyFor(url, process.env);
      // Never its user and password.
      const by = proxy === undefined ? "" : ` by the proxy ${proxy.host}`;
      throw new EndpointError("unavailable", `${url.origin}${by}: ${reasonOf(cause)}`, { cause });
    }
  }

  #pool(url: URL, trust: Trust): Promise<Dispatcher> {
    const key = `${url.origin} ${url.protocol === "https:" ? fingerprint(trust) : ""}`;
    const known = this.#pools.get(key);
    if (known !== undefined) return known;
    const [oldest] = this.#pools;
    if (this.#pools.size >= maxPools && oldest !== undefined) {
      this.#pools.delete(oldest[0]);
      // Requests under way end in their own time.
      oldest[1].then((pool) => pool.close()).catch(() => {});
    }
    const made = this.#connect(url, trust);
    this.#pools.set(key, made);
    made.catch(() => this.#pools.delete(key));
    return made;
  }

  async #connect(url: URL, trust: Trust): Promise<Dispatcher> {
    const tls = url.protocol === "https:" ? trust : {};
    const options: Agent.Options = {
      // Why not: lib/kube's client says it. A pull that is given up would leave what can end the daemon later.
      allowH2: false,
      headersTimeout: this.#options.silenceMs ?? 30_000,
      bodyTimeout: this.#options.silenceMs ?? 30_000,
      keepAliveTimeout: 15_000,
    };
    const proxy = proxyFor(url, process.env);
    const { Agent, ProxyAgent } = await undici();
    if (proxy === undefined) return new Agent({ ...options, connect: { timeout: 10_000, ...tls } });
    return new ProxyAgent({ ...options, uri: proxy.href, requestTls: { timeout: 10_000, ...tls } });
  }
}

const fingerprint = (trust: Trust): string => {
  const hash = createHash("sha256");
  for (const part of [...(trust.ca ?? []), "|", trust.cert ?? "", "|", trust.key ?? ""])
    hash.update(`${part.length}:`).update(part);
  return `${hash.digest("hex")}${trust.rejectUnauthorized === false ? "-unverified" : ""}`;
};

/** Where a redirect may lead: http(s) without credentials, and from TLS only to TLS. */
export const redirectTarget = (from: URL, location: string): URL | undefined => {
  const next = URL.parse(location, from.href);
  if (next === null || next.username !== "" || next.password !== "") return undefined;
  if (next.protocol === "https:") return next;
  return next.protocol === "http:" && from.protocol === "http:" ? next : undefined;
};
