import { setTimeout as sleep } from "node:timers/promises";
import { hasCode, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Logger } from "pino";
import type { Dispatcher } from "undici";
import { type Credentials, credentialsOf, meantFor } from "./auth.ts";
import { assertDigest, type BlobFile, hashOf } from "./blob-file.ts";
import { readCredentials } from "./docker-config.ts";
import { type Endpoint, endpointsOf, type Trust } from "./endpoint.ts";
import { EndpointError, pauseBefore, RegistryUnavailable, retryAfter } from "./endpoint-error.ts";
import { endpointsOfHostsToml } from "./hosts-toml.ts";
import type { PullRequest } from "./images.ts";
import { nextPage } from "./link.ts";
import { type Descriptor, isForeign, limits, manifestTypes, parseManifest, sha256 } from "./manifest.ts";
import { layoutDirectory, layoutRepository } from "./oci-layout.ts";
import { isDigest, nameOf, type Reference } from "./reference.ts";
import { bodyOf, collect, discard, errorDetail, headerOf } from "./response.ts";
import { Tokens } from "./token.ts";
import { Transport } from "./transport.ts";

/** A repository as one pull sees it: its endpoints and the credentials of the pull. */
export interface Repository {
  /** Fetches a manifest or an index by tag or digest; a digest is checked. */
  manifest(
    tagOrDigest: string,
    signal: AbortSignal,
  ): Promise<{ digest: string; contentType: string; bytes: Buffer }>;
  /** Fetches a small blob into memory; digest and size are checked. */
  blob(descriptor: Descriptor, signal: AbortSignal): Promise<Buffer>;
  /** What refers to a manifest (distribution-spec, "Listing Referrers"); undefined when the registry cannot say. */
  referrers(digest: string, signal: AbortSignal): Promise<Descriptor[] | undefined>;
  /** Fetches what is missing of a blob; resolves when digest and size are right. */
  download(into: BlobFile, signal: AbortSignal): Promise<void>;
}

export type RegistryOptions = {
  /** Host of a registry → URLs to ask before it. */
  mirrors: Readonly<Record<string, readonly string[]>>;
  /** Folder of HOST/{hosts.toml,*.crt,*.cert,*.key}. */
  certsDir?: string | undefined;
  /** A docker config.json, for pulls that bring no credentials. */
  credentialsFile?: string | undefined;
  /** How long a registry may be silent in the middle of an answer. */
  silenceMs?: number | undefined;
  log: Pick<Logger, "debug" | "warn">;
};

const attempts = 4;
/** What a connection must bring for its breaking not to count as a failed attempt. */
const progressBytes = 256 << 10;

/** Pages of one list that are followed. */
const maxPages = 10;

type Source = {
  endpoint: Endpoint;
  path: string;
  credentials: Credentials;
  trust: Trust;
  /** Tells a mirror whose images are asked for, as containerd does. */
  namespace?: string;
  attempts: number;
};

/**
 * Client of the distribution specification (pull side). One per daemon: it keeps connections and tokens.
 */
export class Registry implements AsyncDisposable {
  readonly #options: RegistryOptions;
  readonly #transport: Transport;
  readonly #tokens: Tokens;

  constructor(options: RegistryOptions) {
    this.#options = options;
    this.#transport = new Transport(options);
    this.#tokens = new Tokens(this.#transport);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#transport[Symbol.asyncDispose]();
  }

  repository(reference: Reference, auth: PullRequest["auth"]): Repository {
    const layout = this.#options.mirrors[reference.domain]
      ?.map(layoutDirectory)
      .find((path) => path !== undefined);
    // A directory stands for the whole registry: there is nothing behind it to ask.
    if (layout !== undefined) return layoutRepository(layout, nameOf(reference));
    // Once per pull: an administrator's change takes effect with the next one.
    let read: Promise<Source[]> | undefined;
    const sources = async (able: (endpoint: Endpoint) => boolean, signal: AbortSignal): Promise<Source[]> => {
      read ??= this.#sources(reference, auth, signal);
      return (await read).filter(({ endpoint }) => able(endpoint));
    };
    const name = nameOf(reference);
    return {
      manifest: async (tagOrDigest, signal) => {
        const able = await sources(({ pull, resolve }) => (isDigest(tagOrDigest) ? pull : resolve), signal);
        return this.#first(name, able, signal, (source) => this.#manifest(source, tagOrDigest, signal));
      },
      blob: async (descriptor, signal) => {
        const able = await sources(({ pull }) => pull, signal);
        return this.#first(name, able, signal, (source) => this.#blob(source, descriptor, signal));
      },
      referrers: async (digest, signal) => {
        const able = await sources(({ pull }) => pull, signal);
        try {
          return await this.#first(name, able, signal, (source) => this.#referrers(source, digest, signal));
        } catch (error) {
          // 404, or whatever a registry answers to what it does not know.
          if (hasCode(error, "not-found") || hasCode(error, "failed-precondition")) return undefined;
          throw error;
        }
      },
      download: async (into, signal) => {
        const able = await sources(({ pull }) => pull, signal);
        try {
          await this.#first(name, able, signal, (source) => this.#download(source, into, signal));
        } catch (error) {
          const elsewhere = isForeign(into.descriptor) ? (into.descriptor.urls ?? []) : [];
          const places = elsewhere.map((text) => URL.parse(text)).filter((url) => url?.protocol === "https:");
          if (places.length === 0 || signal.aborted) throw error;
          await this.#elsewhere(places as URL[], into, signal, error);
        }
      },
    };
  }

  /** Mirrors of our own configuration first; without any for this registry, the node's hosts.toml. */
  async #sources(reference: Reference, auth: PullRequest["auth"], signal: AbortSignal): Promise<Source[]> {
    const given = credentialsOf(auth);
    const { mirrors, certsDir, credentialsFile, log } = this.#options;
    const listed =
      certsDir === undefined || mirrors[reference.domain] !== undefined
        ? undefined
        : await endpointsOfHostsToml(certsDir, reference.domain);
    const endpoints = listed ?? endpointsOf(reference.domain, mirrors);
    return await Promise.all(
      endpoints.map(async (endpoint): Promise<Source> => {
        const url = new URL(endpoint.base);
        const host = endpoint.upstream ? reference.domain : url.host;
        const mine = meantFor(auth?.serverAddress, host, endpoint.upstream);
        // Credentials of the request are for one host; what the node knows of a mirror's host is the mirror's own.
        const known =
          (given.kind === "anonymous" || !mine) && credentialsFile !== undefined
            ? await readCredentials(credentialsFile, { host, path: reference.path }, log, signal)
            : undefined;
        return {
          endpoint,
          path: reference.path,
          credentials: known ?? (mine ? given : { kind: "anonymous" }),
          trust: endpoint.trust ?? (await this.#transport.trustOf(url)),
          ...(!endpoint.upstream && { namespace: reference.domain }),
          attempts,
        };
      }),
    );
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
        throw new RegistryUnavailable(why || `no endpoint of ${name} is configured to serve this`, {
          cause: last,
        });
    }
  }

  async #manifest(source: Source, tagOrDigest: string, signal: AbortSignal) {
    const what = `manifest ${tagOrDigest}`;
    return await this.#retrying(source, signal, async () => {
      const accept = { accept: manifestTypes.join(", ") };
      const response = await this.#get(source, `manifests/${tagOrDigest}`, what, accept, signal);
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

  async #referrers(source: Source, digest: string, signal: AbortSignal): Promise<Descriptor[]> {
    const what = `referrers of ${digest}`;
    const found: Descriptor[] = [];
    let resource: string | undefined = `referrers/${digest}`;
    for (let page = 0; resource !== undefined && page < maxPages; page++) {
      const asked: string = resource;
      const response = await this.#retrying(source, signal, () =>
        this.#get(source, asked, what, { accept: manifestTypes[0] }, signal),
      );
      const parsed = parseManifest(await collect(response, limits.manifest, what), manifestTypes[0]);
      if (parsed.kind !== "index") throw new EndpointError("invalid", `${what} are no index`);
      found.push(...parsed.index.manifests);
      resource = nextPage(headerOf(response, "link"), `referrers/${digest}`);
    }
    return found;
  }

  #download(source: Source, into: BlobFile, signal: AbortSignal): Promise<void> {
    const { digest } = into.descriptor;
    const ask = (headers: Record<string, string>) =>
      this.#get(source, `blobs/${digest}`, into.what, headers, signal);
    return this.#retrying(
      source,
      signal,
      () => fill(into, ask),
      () => into.offset,
    );
  }

  /** A layer that may not be handed on lies where its manifest says (image-spec descriptor.md, urls); nobody is told who asks. */
  async #elsewhere(places: URL[], into: BlobFile, signal: AbortSignal, first: unknown): Promise<void> {
    for (const url of places.slice(0, 5)) {
      try {
        await fill(into, async (headers) => {
          const trust = await this.#transport.trustOf(url);
          const { response } = await this.#transport.get({ url, headers, trust }, signal);
          return await succeeded(response, `${url.origin} answered`, `for ${into.what}`);
        });
        return;
      } catch (error) {
        signal.throwIfAborted();
        if (!(error instanceof EndpointError)) throw error;
        this.#options.log.debug({ url: url.origin, err: error.message }, "foreign layer not found");
      }
    }
    throw first;
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
        if (progress() >= seen + progressBytes) attempt = 1;
        seen = progress();
        if (!(error instanceof EndpointError) || error.kind !== "unavailable" || attempt >= source.attempts)
          throw error;
        await sleep(pauseBefore(attempt, error.retryAfterMs), undefined, { signal });
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
    const { endpoint, path, credentials, trust, namespace } = source;
    const url = new URL(`${endpoint.api}/${path}/${resource}`);
    if (namespace !== undefined) url.searchParams.set("ns", namespace);
    const whom = { base: endpoint.base, path, credentials, trust };
    const all = { ...endpoint.headers, ...headers };
    const ask = (authorization: string | undefined) =>
      this.#transport.get(
        { url, headers: authorization === undefined ? all : { ...all, authorization }, trust },
        signal,
      );
    const known = this.#tokens.known(whom);
    let { response, origin } = await ask(known);
    if (response.statusCode === 401 && origin === url.origin) {
      const challenge = headerOf(response, "www-authenticate") ?? "";
      await discard(response);
      const authorization = await this.#tokens.answer(whom, challenge, known, signal);
      if (authorization === undefined) {
        throw new EndpointError("denied", `${endpoint.base} answered 401 for ${what} of ${path}`);
      }
      ({ response, origin } = await ask(authorization));
    }
    return await succeeded(response, `${endpoint.base} answered`, `for ${what} of ${path}`);
  }
}

/** The response when it is a success; otherwise what its status means for the pull. */
const succeeded = async (
  response: Dispatcher.ResponseData,
  before: string,
  after: string,
): Promise<Dispatcher.ResponseData> => {
  const { statusCode } = response;
  if (statusCode === 200 || statusCode === 206) return response;
  const answer = `${before} ${statusCode}${await errorDetail(response)} ${after}`;
  if (statusCode === 401 || statusCode === 403) throw new EndpointError("denied", answer);
  if (statusCode === 404 || statusCode === 410) throw new EndpointError("not-found", answer);
  if (statusCode === 408 || statusCode === 429 || statusCode >= 500) {
    const retryAfterMs = retryAfter(headerOf(response, "retry-after"));
    throw new EndpointError("unavailable", answer, retryAfterMs === undefined ? {} : { retryAfterMs });
  }
  throw new EndpointError("invalid", answer);
};

/** Fetches what is missing of a blob by one request, and checks the whole. */
const fill = async (
  into: BlobFile,
  ask: (headers: Record<string, string>) => Promise<Dispatcher.ResponseData>,
): Promise<void> => {
  if (into.offset < into.descriptor.size) {
    const from = into.offset;
    const response = await ask(from > 0 ? { range: `bytes=${from}-` } : {});
    if (from > 0 && !continues(response, from)) await into.reset();
    try {
      for await (const chunk of bodyOf(response, into.what)) await into.write(chunk);
    } catch (error) {
      response.body.destroy();
      throw error;
    }
  }
  await into.finish();
};

/** True when the answer is the part that was asked for; anything else is taken from its beginning. */
const continues = (response: Dispatcher.ResponseData, from: number): boolean => {
  if (response.statusCode !== 206) return false;
  const range = headerOf(response, "content-range");
  if (range === undefined || new RegExp(`^bytes ${from}-`).test(range)) return true;
  throw new EndpointError("unavailable", `a part from byte ${from} was asked for, "${range}" came`);
};
