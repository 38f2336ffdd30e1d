import { createHash } from "node:crypto";
import { open } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Logger } from "pino";
import type { Agent, Dispatcher } from "undici";
import * as z from "zod";
import { type Credentials, credentialsOf, meantFor, parseChallenges } from "./auth.ts";
import { type Endpoint, endpointsOf, readTrust, type Trust } from "./endpoint.ts";
import { endpointsOfHostsToml } from "./hosts-toml.ts";
import type { PullRequest } from "./images.ts";
import { type Descriptor, limits, manifestTypes, sha256 } from "./manifest.ts";
import { layoutDirectory, layoutRepository } from "./oci-layout.ts";
import { isDigest, nameOf, type Reference } from "./reference.ts";

/** A megabyte of program that a node needs when it pulls: loaded by the first pull. */
const undici = async () => (await import("undici")).default;

/** A repository as one pull sees it: its endpoints and the credentials of the pull. */
export interface Repository {
  /** Fetches a manifest or an index by tag or digest; a digest is checked. */
  manifest(
    tagOrDigest: string,
    signal: AbortSignal,
  ): Promise<{ digest: string; contentType: string; bytes: Buffer }>;
  /** Fetches a small blob into memory; digest and size are checked. */
  blob(descriptor: Descriptor, signal: AbortSignal): Promise<Buffer>;
  /** Fetches a blob into a new file; resolves when digest and size are right. */
  download(descriptor: Descriptor, file: string, signal: AbortSignal): Promise<void>;
}

export type RegistryOptions = {
  /** Host of a registry → URLs to ask before it. */
  mirrors: Readonly<Record<string, readonly string[]>>;
  /** Folder of HOST/{*.crt,*.cert,*.key}. */
  certsDir?: string | undefined;
  log: Pick<Logger, "debug">;
};

const attempts = 4;
const maxRedirects = 5;
const maxRetryAfterMs = 30_000;
const tokenResponse = z.object({
  token: z.string().optional(),
  access_token: z.string().optional(),
  expires_in: z.number().optional(),
});

/** Why one endpoint could not serve; decides whether to retry and what the user is told. */
class EndpointError extends Error {
  readonly kind: "not-found" | "denied" | "unavailable" | "invalid";
  readonly retryAfterMs: number | undefined;
  constructor(
    kind: EndpointError["kind"],
    message: string,
    options: ErrorOptions & { retryAfterMs?: number } = {},
  ) {
    super(message, options);
    this.kind = kind;
    this.retryAfterMs = options.retryAfterMs;
  }
}

/**
 * Client of the distribution specification (pull side). One per daemon: it keeps connections and tokens.
 */
export class Registry implements AsyncDisposable {
  readonly #options: RegistryOptions;
  readonly #dispatchers = new Map<string, Promise<Dispatcher>>();
  readonly #tokens = new Map<string, { authorization: string; expires: number }>();
  /** By origin: what the endpoint's own configuration says of TLS. */
  readonly #trust = new Map<string, Trust>();

  constructor(options: RegistryOptions) {
    this.#options = options;
  }

  repository(reference: Reference, auth: PullRequest["auth"]): Repository {
    const layout = this.#options.mirrors[reference.domain]
      ?.map(layoutDirectory)
      .find((path) => path !== undefined);
    // A directory stands for the whole registry: there is nothing behind it to ask.
    if (layout !== undefined) return layoutRepository(layout, nameOf(reference));
    // Once per pull: an administrator's change takes effect with the next one.
    let read: Promise<Source[]> | undefined;
    const sources = (): Promise<Source[]> => {
      read ??= this.#sources(reference, auth);
      return read;
    };
    const name = nameOf(reference);
    return {
      manifest: async (tagOrDigest, signal) => {
        const able = (await sources()).filter(({ endpoint }) =>
          isDigest(tagOrDigest) ? endpoint.pull : endpoint.resolve,
        );
        return this.#first(name, able, signal, (source) => this.#manifest(source, tagOrDigest, signal));
      },
      blob: async (descriptor, signal) => {
        const able = (await sources()).filter(({ endpoint }) => endpoint.pull);
        return this.#first(name, able, signal, (source) => this.#blob(source, descriptor, signal));
      },
      download: async (descriptor, file, signal) => {
        const able = (await sources()).filter(({ endpoint }) => endpoint.pull);
        return this.#first(name, able, signal, (source) => this.#download(source, descriptor, file, signal));
      },
    };
  }

  /** Mirrors of our own configuration first; without any for this registry, the node's hosts.toml. */
  async #sources(reference: Reference, auth: PullRequest["auth"]): Promise<Source[]> {
    const given = credentialsOf(auth);
    const { mirrors, certsDir } = this.#options;
    const listed =
      certsDir === undefined || mirrors[reference.domain] !== undefined
        ? undefined
        : await endpointsOfHostsToml(certsDir, reference.domain);
    for (const { base, trust } of listed ?? []) this.#setTrust(new URL(base).origin, trust);
    return (listed ?? endpointsOf(reference.domain, mirrors)).map((endpoint): Source => {
      const host = endpoint.upstream ? reference.domain : new URL(endpoint.base).host;
      const mine = meantFor(auth?.serverAddress, host, endpoint.upstream);
      return { endpoint, path: reference.path, credentials: mine ? given : { kind: "anonymous" }, attempts };
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled(
      [...this.#dispatchers.values()].map(async (dispatcher) => (await dispatcher).destroy()),
    );
    this.#dispatchers.clear();
  }

  /** Asks the sources in turn; the last one's answer decides what the error is. */
  async #first<T>(
    name: string,
    sources: Source[],
    signal: AbortSignal,
    ask: (source: Source) => Promise<T>,
  ): Promise<T> {
    const failures: EndpointError[] = [];
    for (const source of sources) {
      try {
        // After a definite answer from a mirror, a registry that is out of reach is not worth a wait.
        const answered = failures.some(({ kind }) => kind !== "unavailable");
        return await ask(answered ? { ...source, attempts: 1 } : source);
      } catch (error) {
        signal.throwIfAborted();
        if (!(error instanceof EndpointError)) throw error;
        this.#options.log.debug(
          { image: name, endpoint: source.endpoint.base, err: error.message },
          "registry failed",
        );
        failures.push(error);
      }
    }
    const last = failures.at(-1);
    const why = failures.map((failure) => failure.message).join("; ");
    switch (last?.kind) {
      case "not-found":
        throw new RuntimeError("not-found", why, { cause: last });
      case "denied":
        throw new RuntimeError("permission-denied", why, { cause: last });
      case "invalid":
        throw new RuntimeError("failed-precondition", why, { cause: last });
      default:
        throw new RegistryUnavailable(why, { cause: last });
    }
  }

  async #manifest(source: Source, tagOrDigest: string, signal: AbortSignal) {
    const what = `manifest ${tagOrDigest}`;
    return await this.#retrying(source, signal, async () => {
      const response = await this.#get(
        source,
        `manifests/${tagOrDigest}`,
        what,
        { accept: manifestTypes.join(", ") },
        signal,
      );
      const bytes = await collect(response, limits.manifest, what);
      // A tag's digest is of the bytes that came; what the registry claims in a header proves nothing.
      const digest = isDigest(tagOrDigest) ? tagOrDigest : sha256(bytes);
      assertDigest(what, digest, hashOf(digest).update(bytes).digest("hex"));
      return { digest, contentType: headerOf(response, "content-type") ?? "", bytes };
    });
  }

  async #blob(source: Source, descriptor: Descriptor, signal: AbortSignal): Promise<Buffer> {
    const what = `blob ${descriptor.digest}`;
    return await this.#retrying(source, signal, async () => {
      const response = await this.#get(source, `blobs/${descriptor.digest}`, what, {}, signal);
      const bytes = await collect(response, descriptor.size, what);
      if (bytes.length !== descriptor.size) {
        throw new EndpointError("invalid", `${what} has ${bytes.length} bytes instead of ${descriptor.size}`);
      }
      assertDigest(what, descriptor.digest, hashOf(descriptor.digest).update(bytes).digest("hex"));
      return bytes;
    });
  }

  async #download(source: Source, descriptor: Descriptor, path: string, signal: AbortSignal): Promise<void> {
    const what = `blob ${descriptor.digest}`;
    await using file = await open(path, "w", 0o600);
    let hash = hashOf(descriptor.digest);
    let offset = 0;
    await this.#retrying(
      source,
      signal,
      async () => {
        const range = offset > 0 ? { range: `bytes=${offset}-` } : {};
        const response = await this.#get(source, `blobs/${descriptor.digest}`, what, range, signal);
        if (offset > 0 && response.statusCode !== 206) {
          // The registry cannot resume: begin again.
          await file.truncate(0);
          hash = hashOf(descriptor.digest);
          offset = 0;
        }
        for await (const chunk of body(response, what)) {
          if (offset + chunk.length > descriptor.size) {
            response.body.destroy();
            throw new EndpointError("invalid", `${what} has more than its ${descriptor.size} bytes`);
          }
          hash.update(chunk);
          await file.write(chunk, 0, chunk.length, offset);
          offset += chunk.length;
        }
        if (offset < descriptor.size)
          throw new EndpointError("unavailable", `${what} ended after ${offset} bytes`);
      },
      () => offset,
    );
    assertDigest(what, descriptor.digest, hash.digest("hex"));
  }

  /** Repeats work that an endpoint was not available for, with growing pauses; progress starts the count anew. */
  async #retrying<T>(
    source: Source,
    signal: AbortSignal,
    work: () => Promise<T>,
    progress: () => number = () => 0,
  ): Promise<T> {
    let seen = progress();
    for (let attempt = 1; ; attempt++) {
      try {
        return await work();
      } catch (error) {
        signal.throwIfAborted();
        if (progress() > seen) attempt = 1;
        seen = progress();
        if (!(error instanceof EndpointError) || error.kind !== "unavailable" || attempt >= source.attempts)
          throw error;
        const pause = 200 * 2 ** (attempt - 1) * (0.75 + Math.random() / 2);
        await sleep(Math.min(Math.max(error.retryAfterMs ?? 0, pause), maxRetryAfterMs), undefined, {
          signal,
        });
      }
    }
  }

  /** GET /v2/PATH/what with authorization; resolves with a successful response. */
  async #get(
    source: Source,
    resource: string,
    what: string,
    headers: Record<string, string>,
    signal: AbortSignal,
  ): Promise<Dispatcher.ResponseData> {
    const url = new URL(`${source.endpoint.api}/${source.path}/${resource}`);
    const known = this.#authorization(source);
    const all = { ...source.endpoint.headers, ...headers };
    let response = await this.#send(
      url,
      known === undefined ? all : { ...all, authorization: known },
      signal,
    );
    if (response.statusCode === 401) {
      const challenge = headerOf(response, "www-authenticate") ?? "";
      await response.body.dump();
      const authorization = await this.#answer(source, challenge, known, signal);
      if (authorization !== undefined) {
        response = await this.#send(url, { ...all, authorization }, signal);
      }
    }
    const { statusCode } = response;
    if (statusCode === 200 || statusCode === 206) return response;
    const detail = await errorDetail(response);
    const answer = `${source.endpoint.base} answered ${statusCode}${detail} for ${what} of ${source.path}`;
    if (statusCode === 401 || statusCode === 403) throw new EndpointError("denied", answer);
    if (statusCode === 404) throw new EndpointError("not-found", answer);
    if (statusCode === 429 || statusCode >= 500) {
      const retryAfterMs = retryAfter(headerOf(response, "retry-after"));
      throw new EndpointError("unavailable", answer, retryAfterMs === undefined ? {} : { retryAfterMs });
    }
    throw new EndpointError("invalid", answer);
  }

  #tokenKey(source: Source): string {
    return JSON.stringify([source.endpoint.base, source.path, source.credentials]);
  }

  /** What is known to work for this source: a cached token, or a token that the user brought. */
  #authorization(source: Source): string | undefined {
    if (source.credentials.kind === "bearer") return `Bearer ${source.credentials.token}`;
    const cached = this.#tokens.get(this.#tokenKey(source));
    return cached !== undefined && cached.expires > Date.now() ? cached.authorization : undefined;
  }

  /** Answers a challenge by the distribution token specification or with basic authentication. */
  async #answer(
    source: Source,
    header: string,
    refused: string | undefined,
    signal: AbortSignal,
  ): Promise<string | undefined> {
    const challenges = parseChallenges(header);
    const bearer = challenges.find(({ scheme }) => scheme === "bearer");
    const basic = challenges.find(({ scheme }) => scheme === "basic");
    const { credentials } = source;
    if (credentials.kind === "bearer") return undefined;
    if (bearer !== undefined) return await this.#token(source, bearer.parameters, signal);
    if (basic !== undefined && credentials.kind === "password") {
      const authorization = basicOf(credentials);
      if (authorization === refused) return undefined;
      this.#remember(source, authorization, 300);
      return authorization;
    }
    return undefined;
  }

  async #token(source: Source, parameters: Record<string, string>, signal: AbortSignal): Promise<string> {
    const { base } = source.endpoint;
    const realm = URL.parse(parameters.realm ?? "");
    // A registry behind TLS must not have the password sent in the clear.
    if (
      realm === null ||
      !(realm.protocol === "https:" || (realm.protocol === "http:" && base.startsWith("http:")))
    ) {
      throw new EndpointError("denied", `${base} names no usable token server`);
    }
    const { credentials } = source;
    const query = new URLSearchParams();
    if (parameters.service !== undefined) query.set("service", parameters.service);
    query.set("scope", parameters.scope ?? `repository:${source.path}:pull`);
    const exchange = async (): Promise<Dispatcher.ResponseData> => {
      if (credentials.kind === "identity") {
        query.set("grant_type", "refresh_token");
        query.set("client_id", "bulkhead");
        query.set("refresh_token", credentials.token);
        const form = { "content-type": "application/x-www-form-urlencoded" };
        return await this.#exchange(realm, "POST", form, query.toString(), signal);
      }
      const url = new URL(realm);
      for (const [name, value] of query) url.searchParams.set(name, value);
      if (credentials.kind !== "password") return await this.#exchange(url, "GET", {}, undefined, signal);
      url.searchParams.set("account", credentials.username);
      return await this.#exchange(url, "GET", { authorization: basicOf(credentials) }, undefined, signal);
    };
    const response = await exchange();
    if (response.statusCode !== 200) {
      const kind = response.statusCode === 429 || response.statusCode >= 500 ? "unavailable" : "denied";
      const detail = await errorDetail(response);
      throw new EndpointError(
        kind,
        `token server ${realm.host} answered ${response.statusCode}${detail} for ${source.path}`,
      );
    }
    const parsed = tokenResponse.safeParse(parseJson(await collect(response, 1 << 20, "token")));
    const token = parsed.data?.token ?? parsed.data?.access_token;
    if (token === undefined || /[^\x21-\x7e]/.test(token)) {
      throw new EndpointError("denied", `token server ${realm.host} sent no token`);
    }
    this.#remember(source, `Bearer ${token}`, parsed.data?.expires_in ?? 60);
    return `Bearer ${token}`;
  }

  #remember(source: Source, authorization: string, seconds: number): void {
    const now = Date.now();
    for (const [key, token] of this.#tokens) if (token.expires <= now) this.#tokens.delete(key);
    this.#tokens.set(this.#tokenKey(source), {
      authorization,
      expires: now + Math.max(0, seconds - 10) * 1000,
    });
  }

  /** One request, redirects followed. Authorization stays with the origin that it is for. */
  async #send(
    start: URL,
    headers: Record<string, string>,
    signal: AbortSignal,
  ): Promise<Dispatcher.ResponseData> {
    let url = start;
    let sent = headers;
    for (let hop = 0; hop <= maxRedirects; hop++) {
      const response = await this.#exchange(url, "GET", sent, undefined, signal);
      const location = headerOf(response, "location");
      if (![301, 302, 303, 307, 308].includes(response.statusCode) || location === undefined) return response;
      await response.body.dump();
      const next = URL.parse(location, url.href);
      if (
        next === null ||
        !(next.protocol === "https:" || (next.protocol === "http:" && url.protocol === "http:"))
      ) {
        throw new EndpointError("invalid", `${url.origin} redirects to a place that is not safe to follow`);
      }
      if (next.origin !== url.origin) {
        // Authorization and configured headers are for the registry alone.
        const { accept, range } = sent;
        sent = { ...(accept !== undefined && { accept }), ...(range !== undefined && { range }) };
      }
      url = next;
    }
    throw new EndpointError("invalid", `${start.origin} redirects more than ${maxRedirects} times`);
  }

  async #exchange(
    url: URL,
    method: "GET" | "POST",
    headers: Record<string, string>,
    content: string | undefined,
    signal: AbortSignal,
  ): Promise<Dispatcher.ResponseData> {
    const dispatcher = await this.#dispatcher(url);
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
      throw new EndpointError("unavailable", `${url.origin}: ${reasonOf(cause)}`, { cause });
    }
  }

  /** A connection made under other certificates is not used again. */
  #setTrust(origin: string, trust: Trust | undefined): void {
    if (isDeepStrictEqual(this.#trust.get(origin), trust)) return;
    if (trust) this.#trust.set(origin, trust);
    else this.#trust.delete(origin);
    const old = this.#dispatchers.get(origin);
    this.#dispatchers.delete(origin);
    old?.then((dispatcher) => dispatcher.close()).catch(() => {});
  }

  #dispatcher(url: URL): Promise<Dispatcher> {
    const known = this.#dispatchers.get(url.origin);
    if (known !== undefined) return known;
    const made = this.#connect(url);
    this.#dispatchers.set(url.origin, made);
    made.catch(() => this.#dispatchers.delete(url.origin));
    return made;
  }

  async #connect(url: URL): Promise<Dispatcher> {
    const trust =
      url.protocol === "https:"
        ? (this.#trust.get(url.origin) ?? (await readTrust(this.#options.certsDir, url.host)))
        : {};
    const options: Agent.Options = {
      connect: { timeout: 10_000, ...trust },
      headersTimeout: 30_000,
      bodyTimeout: 60_000,
      keepAliveTimeout: 15_000,
    };
    const proxied = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"].some(
      (name) => process.env[name],
    );
    const { Agent, EnvHttpProxyAgent } = await undici();
    return proxied ? new EnvHttpProxyAgent(options) : new Agent(options);
  }
}

type Source = { endpoint: Endpoint; path: string; credentials: Credentials; attempts: number };

/**
 * No endpoint of a registry could be reached. The kubelet tells this from other failures by the first word of the
 * message, which it keeps only for the code Unknown.
 */
export class RegistryUnavailable extends RuntimeError {
  constructor(message: string, options?: ErrorOptions) {
    super("unknown", message, options);
  }
}

const basicOf = ({ username, password }: { username: string; password: string }): string =>
  `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}`;

const headerOf = (response: Dispatcher.ResponseData, name: string): string | undefined => {
  const value = response.headers[name];
  return Array.isArray(value) ? value.join(", ") : value;
};

/** Retry-After in milliseconds: seconds or a date (RFC 9110, section 10.2.3). */
export const retryAfter = (value: string | undefined, now = Date.now()): number | undefined => {
  if (value === undefined) return undefined;
  const milliseconds = /^[0-9]+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - now;
  return Number.isNaN(milliseconds) ? undefined : Math.max(0, milliseconds);
};

const hashOf = (digest: string) => createHash(digest.slice(0, digest.indexOf(":")));

const assertDigest = (what: string, expected: string, hex: string): void => {
  if (expected.endsWith(`:${hex}`)) return;
  throw new EndpointError("invalid", `${what} does not have the digest ${expected} but ${hex}`);
};

const parseJson = (bytes: Uint8Array): unknown => {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return undefined;
  }
};

const reasonOf = (cause: unknown): string => {
  if (cause instanceof AggregateError) return cause.errors.map(messageOf).join(", ");
  const inner = cause instanceof Error && cause.cause instanceof Error ? `: ${cause.cause.message}` : "";
  return `${messageOf(cause)}${inner}`;
};

/** The body of a response; a connection that breaks is the endpoint's failure. */
async function* body(response: Dispatcher.ResponseData, what: string): AsyncGenerator<Buffer> {
  try {
    for await (const chunk of response.body) yield chunk as Buffer;
  } catch (cause) {
    throw new EndpointError("unavailable", `${what}: ${reasonOf(cause)}`, { cause });
  }
}

const collect = async (response: Dispatcher.ResponseData, limit: number, what: string): Promise<Buffer> => {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of body(response, what)) {
    length += chunk.length;
    if (length > limit) {
      response.body.destroy();
      throw new EndpointError("invalid", `${what} has more than ${limit} bytes`);
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, length);
};

const errorBody = z.object({
  errors: z.array(z.object({ code: z.string().optional(), message: z.string().optional() })),
});

/** The registry's own words (distribution-spec, "Error Codes"), short and on one line. */
const errorDetail = async (response: Dispatcher.ResponseData): Promise<string> => {
  const bytes = await collect(response, 64 << 10, "error").catch(() => Buffer.alloc(0));
  const first = errorBody.safeParse(parseJson(bytes)).data?.errors[0];
  const words = first?.message ?? first?.code;
  return words === undefined ? "" : ` (${words.replace(/[\p{Cc}]+/gu, " ").slice(0, 200)})`;
};
