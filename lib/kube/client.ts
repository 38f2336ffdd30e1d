import { Agent, type Dispatcher, errors as undiciErrors } from "undici";
import { type Clock, systemClock } from "../std/clock.ts";
import { type ErrorCode, messageOf, RuntimeError } from "../std/errors.ts";
import { annotate, span } from "../tracing/span.ts";
import type { KubeConfig } from "./config.ts";
import type { KubeObject, Resource } from "./object.ts";
import { pods } from "./resources.ts";

/** What the API server said of a failed request (meta/v1 Status), kept as the error's cause. */
export type ApiStatus = {
  httpStatus: number;
  reason: string;
  retryAfterMs?: number;
};

/** The API server's own words on a failed request, or undefined when it never answered. */
export const apiStatusOf = (error: unknown): ApiStatus | undefined => {
  const cause = error instanceof RuntimeError ? error.cause : undefined;
  return typeof cause === "object" && cause !== null && "httpStatus" in cause
    ? (cause as ApiStatus)
    : undefined;
};

/** True when the resource version that was asked for is gone: list again. */
export const isExpired = (error: unknown): boolean => {
  const status = apiStatusOf(error);
  return status?.httpStatus === 410 || status?.reason === "Expired" || status?.reason === "Gone";
};

export type WatchEvent<T> =
  | { type: "ADDED" | "MODIFIED" | "DELETED"; object: T }
  | { type: "BOOKMARK"; object: { metadata: { resourceVersion: string } } };

export type Page<T> = { items: T[]; resourceVersion: string; continue?: string };

export type Scope = { namespace?: string; labelSelector?: string; fieldSelector?: string };
export type Wait = { signal?: AbortSignal };
export type Place = { namespace?: string };

/** What is applied: only the fields that the manager wants to own. */
export type Applied = {
  metadata: { name: string; namespace?: string; [field: string]: unknown };
  [field: string]: unknown;
};

export type WatchOptions = Scope & {
  resourceVersion: string;
  signal: AbortSignal;
  /** The server ends the watch after this. */
  timeoutSeconds?: number;
  /** A connection that carries nothing, not even a bookmark, for so long is dead. */
  idleMs?: number;
};

/** The Kubernetes API, as much of it as Bulkhead uses: one request a method, errors as RuntimeError. */
export type Client = {
  readonly server: string;
  get<T extends KubeObject>(resource: Resource<T>, name: string, options?: Place & Wait): Promise<T>;
  /** One page. Callers page on with `continue`. */
  list<T extends KubeObject>(
    resource: Resource<T>,
    options?: Scope & Wait & { limit?: number; continue?: string; resourceVersion?: string },
  ): Promise<Page<T>>;
  create<T extends KubeObject>(
    resource: Resource<T>,
    object: T,
    options?: Wait & { fieldManager?: string },
  ): Promise<T>;
  /** Replaces the object if its resourceVersion, when given, still holds. */
  replace<T extends KubeObject>(
    resource: Resource<T>,
    object: T,
    options?: Wait & { fieldManager?: string; subresource?: "status" },
  ): Promise<T>;
  /** Server-side apply. Fields of another manager are taken over only with `force`. */
  apply<T extends KubeObject>(
    resource: Resource<T>,
    object: Applied,
    options: Wait & { fieldManager: string; force?: boolean },
  ): Promise<T>;
  /** Server-side apply of the status subresource. */
  applyStatus<T extends KubeObject>(
    resource: Resource<T>,
    object: Applied,
    options: Wait & { fieldManager: string; force?: boolean },
  ): Promise<T>;
  /** JSON merge patch (RFC 7386). */
  patch<T extends KubeObject>(
    resource: Resource<T>,
    name: string,
    patch: object,
    options?: Place & Wait & { fieldManager?: string; subresource?: "status" },
  ): Promise<T>;
  delete<T extends KubeObject>(
    resource: Resource<T>,
    name: string,
    options?: Place & Wait & { uid?: string; resourceVersion?: string },
  ): Promise<void>;
  /** Asks a pod away by the eviction API; "resource-exhausted" while its PodDisruptionBudgets allow none. */
  evict(pod: { name: string; namespace?: string; uid?: string }, options?: Wait): Promise<void>;
  /** The events after `resourceVersion`, until the server, the signal or a dead connection ends them. */
  watch<T extends KubeObject>(resource: Resource<T>, options: WatchOptions): AsyncIterable<WatchEvent<T>>;
  close(): Promise<void>;
};

export type ClientOptions = {
  config: KubeConfig;
  clock?: Clock;
  userAgent?: string;
  /** Deadline of one attempt of a request; watches have none. */
  timeoutMs?: number;
  /** Attempts of a request that the server asks to repeat (429, 503 with Retry-After). */
  attempts?: number;
  /** Requests under way at a time, each on a connection of its own; watches are not counted. */
  connections?: number;
  /** Asked before each request that writes; throws what refuses it. */
  guard?: () => void;
  /** Told of every answer, for rest_client_requests_total. `code` is the HTTP status or <error>. */
  onRequest?: (request: { method: string; code: string; ms: number }) => void;
};

const codes: Record<number, ErrorCode> = {
  400: "invalid-argument",
  401: "permission-denied",
  403: "permission-denied",
  404: "not-found",
  405: "unimplemented",
  409: "failed-precondition",
  410: "failed-precondition",
  415: "unimplemented",
  422: "invalid-argument",
  429: "resource-exhausted",
  500: "internal",
  502: "unavailable",
  503: "unavailable",
  504: "deadline-exceeded",
};

const basePath = (resource: Resource<KubeObject>, namespace?: string): string => {
  const root = resource.apiVersion.includes("/")
    ? `/apis/${resource.apiVersion}`
    : `/api/${resource.apiVersion}`;
  return namespace && resource.namespaced
    ? `${root}/namespaces/${encodeURIComponent(namespace)}/${resource.plural}`
    : `${root}/${resource.plural}`;
};

const query = (values: Record<string, string | number | boolean | undefined>): string => {
  const set = Object.entries(values).filter(([, value]) => value !== undefined && value !== "");
  return set.length === 0 ? "" : `?${new URLSearchParams(set.map(([k, v]) => [k, String(v)]))}`;
};

const accept = (resource: Resource<KubeObject>, list: boolean): string =>
  resource.metadataOnly
    ? `application/json;as=PartialObjectMetadata${list ? "List" : ""};v=v1;g=meta.k8s.io`
    : "application/json";

/** A server that asks for more is asked again then all the same. */
const longestWaitMs = 30_000;

type StatusBody = {
  reason?: string;
  message?: string;
  code?: number;
  details?: { retryAfterSeconds?: number };
};

const parse = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
};

/** The error of an answer that is not 2xx. */
const failure = (what: string, httpStatus: number, text: string, retryAfter?: string): RuntimeError => {
  const body = (parse(text) ?? {}) as StatusBody;
  const seconds = retryAfter !== undefined ? Number(retryAfter) : body.details?.retryAfterSeconds;
  const cause: ApiStatus = {
    httpStatus,
    reason: body.reason ?? "",
    ...(seconds !== undefined && Number.isFinite(seconds)
      ? { retryAfterMs: Math.min(Math.max(seconds, 0) * 1000, longestWaitMs) }
      : {}),
  };
  const code = body.reason === "AlreadyExists" ? "already-exists" : (codes[httpStatus] ?? "unknown");
  return new RuntimeError(
    code,
    `Cannot ${what}: ${body.message ?? `the API server answered ${httpStatus}`}`,
    {
      cause,
    },
  );
};

/** The error of a request that got no answer. */
const noAnswer = (what: string, error: unknown, signal?: AbortSignal): unknown => {
  if (signal?.aborted) return signal.reason;
  const late =
    error instanceof undiciErrors.HeadersTimeoutError ||
    error instanceof undiciErrors.BodyTimeoutError ||
    (error instanceof Error && error.name === "TimeoutError");
  return new RuntimeError(late ? "deadline-exceeded" : "unavailable", `Cannot ${what}: ${messageOf(error)}`, {
    cause: error,
  });
};

/**
 * A watch that carried nothing for long: the connection is dead, or the API server has not seen a change of the resource
 * since it started, and sends no bookmarks. Either way one watches on from where one was.
 */
const wasIdle = (error: unknown): boolean => error instanceof undiciErrors.BodyTimeoutError;

/** undici looks at the signal only once a request has its connection: one that waits for it would wait for ever. */
const orAborted = async <T>(sent: Promise<T>, signal: AbortSignal): Promise<T> => {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const give = () => reject(signal.reason);
  signal.addEventListener("abort", give, { once: true });
  if (signal.aborted) give();
  // It ends by the signal, too, later.
  sent.catch(() => {});
  try {
    return await Promise.race([sent, aborted]);
  } finally {
    signal.removeEventListener("abort", give);
  }
};

/** One line of a watch answer is one object; nothing Bulkhead watches comes near this. */
const maxLine = 32 * 1024 * 1024;

async function* lines(body: AsyncIterable<Uint8Array>): AsyncIterable<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of body) {
    rest += decoder.decode(chunk, { stream: true });
    let from = 0;
    for (let end = rest.indexOf("\n", from); end >= 0; end = rest.indexOf("\n", from)) {
      if (end > from) yield rest.slice(from, end);
      from = end + 1;
    }
    rest = rest.slice(from);
    if (rest.length > maxLine)
      throw new RuntimeError("resource-exhausted", "Cannot read a watch event: too long");
  }
}

type Request = {
  method: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  path: string;
  accept?: string;
  contentType?: string;
  body?: unknown;
  signal?: AbortSignal | undefined;
};

export const createClient = (options: ClientOptions): Client => {
  const { config, clock = systemClock, timeoutMs = 30_000, attempts = 5, connections = 16 } = options;
  const connect = { ...config.tls, keepAlive: true, keepAliveInitialDelay: 30_000, timeout: 10_000 };
  // Over HTTP/2, an answer to a request that was just aborted becomes a stream that nobody knows of (node:http2): it
  // stays with the connection, and as that breaks its error ends the process.
  const allowH2 = false;
  // Watches hold a connection each for minutes: they must not use up those of the requests.
  const requests = new Agent({ connect, allowH2, connections, keepAliveTimeout: 30_000 });
  const watches = new Agent({ connect, allowH2, headersTimeout: timeoutMs });
  const userAgent = options.userAgent ?? "bulkhead";

  /** A write is a span of the work that it belongs to. */
  const send = (what: string, request: Request): Promise<unknown> =>
    request.method === "GET"
      ? ask(what, request)
      : span(
          what.replace(/ "[^"]*"$/, ""),
          { "http.request.method": request.method, "url.path": request.path.split("?", 1)[0] },
          () => ask(what, request),
          "client",
        );

  const ask = async (what: string, request: Request): Promise<unknown> => {
    const body = request.body === undefined ? null : JSON.stringify(request.body);
    for (let attempt = 1; ; attempt++) {
      request.signal?.throwIfAborted();
      if (request.method !== "GET") options.guard?.();
      const started = clock.now();
      let answer: { status: number; text: string; retryAfter?: string };
      try {
        const deadline = AbortSignal.timeout(timeoutMs);
        const signal = request.signal ? AbortSignal.any([request.signal, deadline]) : deadline;
        const sent = requests.request({
          origin: config.server,
          path: request.path,
          method: request.method,
          headers: {
            ...(await orAborted(config.headers(), signal)),
            accept: request.accept ?? "application/json",
            "user-agent": userAgent,
            ...(body === null ? {} : { "content-type": request.contentType ?? "application/json" }),
          },
          body,
          signal,
        });
        const response = await orAborted(sent, signal);
        const retryAfter = response.headers["retry-after"];
        answer = {
          status: response.statusCode,
          text: await response.body.text(),
          ...(typeof retryAfter === "string" ? { retryAfter } : {}),
        };
      } catch (error) {
        options.onRequest?.({ method: request.method, code: "<error>", ms: clock.now() - started });
        throw noAnswer(what, error, request.signal);
      }
      options.onRequest?.({
        method: request.method,
        code: String(answer.status),
        ms: clock.now() - started,
      });
      if (request.method !== "GET") annotate({ "http.response.status_code": answer.status });
      if (answer.status >= 200 && answer.status < 300) {
        const value = parse(answer.text);
        if (value !== undefined) return value;
        // A 2xx whose body ends early was not read whole; nothing is known of what happened.
        throw new RuntimeError("unavailable", `Cannot ${what}: the API server's answer is not JSON`);
      }
      const error = failure(what, answer.status, answer.text, answer.retryAfter);
      const status = apiStatusOf(error);
      const again = (answer.status === 429 || answer.status >= 500) && status?.retryAfterMs !== undefined;
      if (!again || attempt >= attempts) throw error;
      // Not sooner each time, whatever the server says: "0" would be asked again at once, by everyone.
      await clock.sleep(Math.max(status?.retryAfterMs ?? 1000, 100 * 2 ** attempt), request.signal);
    }
  };

  const one = (resource: Resource<KubeObject>, name: string, namespace?: string, subresource?: string) =>
    `${basePath(resource, namespace)}/${encodeURIComponent(name)}${subresource ? `/${subresource}` : ""}`;

  const naming = (resource: Resource<KubeObject>, name: string, namespace?: string) =>
    `${resource.kind} "${namespace ? `${namespace}/` : ""}${name}"`;

  const applyTo =
    (subresource?: "status") =>
    async <T extends KubeObject>(
      resource: Resource<T>,
      object: Applied,
      { fieldManager, force, signal }: Wait & { fieldManager: string; force?: boolean },
    ): Promise<T> => {
      const { name, namespace } = object.metadata;
      return (await send(`apply ${subresource ? "the status of " : ""}${naming(resource, name, namespace)}`, {
        method: "PATCH",
        path: `${one(resource, name, namespace, subresource)}${query({ fieldManager, force: force ?? false })}`,
        // JSON is YAML; the media type's name says yaml.
        contentType: "application/apply-patch+yaml",
        body: { ...object, apiVersion: resource.apiVersion, kind: resource.kind },
        signal,
      })) as T;
    };

  return {
    server: config.server,
    get: async <T extends KubeObject>(resource: Resource<T>, name: string, o: Place & Wait = {}) =>
      (await send(`get ${naming(resource, name, o.namespace)}`, {
        method: "GET",
        path: one(resource, name, o.namespace),
        accept: accept(resource, false),
        signal: o.signal,
      })) as T,
    list: async <T extends KubeObject>(
      resource: Resource<T>,
      o: Scope & Wait & { limit?: number; continue?: string; resourceVersion?: string } = {},
    ) => {
      const answer = (await send(`list ${resource.plural}`, {
        method: "GET",
        path: `${basePath(resource, o.namespace)}${query({
          labelSelector: o.labelSelector,
          fieldSelector: o.fieldSelector,
          limit: o.limit ?? 500,
          continue: o.continue,
          resourceVersion: o.resourceVersion,
        })}`,
        accept: accept(resource, true),
        signal: o.signal,
      })) as { items?: T[]; metadata?: { resourceVersion?: string; continue?: string } };
      return {
        items: answer.items ?? [],
        resourceVersion: answer.metadata?.resourceVersion ?? "",
        ...(answer.metadata?.continue ? { continue: answer.metadata.continue } : {}),
      };
    },
    create: async <T extends KubeObject>(
      resource: Resource<T>,
      object: T,
      o: Wait & { fieldManager?: string } = {},
    ) =>
      (await send(`create ${naming(resource, object.metadata.name, object.metadata.namespace)}`, {
        method: "POST",
        path: `${basePath(resource, object.metadata.namespace)}${query({ fieldManager: o.fieldManager })}`,
        body: { ...object, apiVersion: resource.apiVersion, kind: resource.kind },
        signal: o.signal,
      })) as T,
    replace: async <T extends KubeObject>(
      resource: Resource<T>,
      object: T,
      o: Wait & { fieldManager?: string; subresource?: "status" } = {},
    ) =>
      (await send(`replace ${naming(resource, object.metadata.name, object.metadata.namespace)}`, {
        method: "PUT",
        path: `${one(resource, object.metadata.name, object.metadata.namespace, o.subresource)}${query({
          fieldManager: o.fieldManager,
        })}`,
        body: { ...object, apiVersion: resource.apiVersion, kind: resource.kind },
        signal: o.signal,
      })) as T,
    apply: applyTo(),
    applyStatus: applyTo("status"),
    patch: async <T extends KubeObject>(
      resource: Resource<T>,
      name: string,
      patch: object,
      o: Place & Wait & { fieldManager?: string; subresource?: "status" } = {},
    ) =>
      (await send(`patch ${naming(resource, name, o.namespace)}`, {
        method: "PATCH",
        path: `${one(resource, name, o.namespace, o.subresource)}${query({ fieldManager: o.fieldManager })}`,
        contentType: "application/merge-patch+json",
        body: patch,
        signal: o.signal,
      })) as T,
    delete: async (resource, name, o = {}) => {
      const preconditions = {
        ...(o.uid ? { uid: o.uid } : {}),
        ...(o.resourceVersion ? { resourceVersion: o.resourceVersion } : {}),
      };
      await send(`delete ${naming(resource, name, o.namespace)}`, {
        method: "DELETE",
        path: one(resource, name, o.namespace),
        body: { apiVersion: "v1", kind: "DeleteOptions", preconditions },
        signal: o.signal,
      });
    },
    evict: async ({ name, namespace, uid }, o = {}) => {
      await send(`evict Pod "${namespace}/${name}"`, {
        method: "POST",
        path: one(pods, name, namespace, "eviction"),
        body: {
          apiVersion: "policy/v1",
          kind: "Eviction",
          metadata: { name, namespace },
          ...(uid ? { deleteOptions: { preconditions: { uid } } } : {}),
        },
        signal: o.signal,
      });
    },
    watch: async function* <T extends KubeObject>(
      resource: Resource<T>,
      o: WatchOptions,
    ): AsyncIterable<WatchEvent<T>> {
      const what = `watch ${resource.plural}`;
      const started = clock.now();
      // Ends the connection when the consumer stops early, too.
      const stop = new AbortController();
      const signal = AbortSignal.any([o.signal, stop.signal]);
      let response: Dispatcher.ResponseData;
      try {
        const sent = watches.request({
          origin: config.server,
          path: `${basePath(resource, o.namespace)}${query({
            watch: 1,
            allowWatchBookmarks: true,
            resourceVersion: o.resourceVersion,
            timeoutSeconds: o.timeoutSeconds,
            labelSelector: o.labelSelector,
            fieldSelector: o.fieldSelector,
          })}`,
          method: "GET",
          headers: {
            ...(await orAborted(config.headers(), signal)),
            accept: accept(resource, false),
            "user-agent": userAgent,
          },
          signal,
          bodyTimeout: o.idleMs ?? 150_000,
        });
        response = await orAborted(sent, signal);
      } catch (error) {
        options.onRequest?.({ method: "GET", code: "<error>", ms: clock.now() - started });
        throw noAnswer(what, error, o.signal);
      }
      options.onRequest?.({
        method: "GET",
        code: String(response.statusCode),
        ms: clock.now() - started,
      });
      try {
        if (response.statusCode !== 200) {
          const retryAfter = response.headers["retry-after"];
          throw failure(
            what,
            response.statusCode,
            await response.body.text(),
            typeof retryAfter === "string" ? retryAfter : undefined,
          );
        }
        for await (const line of lines(response.body)) {
          const event = parse(line) as { type: string; object: unknown } | undefined;
          if (!event) throw new RuntimeError("unavailable", `Cannot ${what}: an event is not JSON`);
          if (event.type === "ERROR") {
            const status = event.object as StatusBody;
            throw failure(what, status.code ?? 500, JSON.stringify(status));
          }
          yield event as WatchEvent<T>;
        }
      } catch (error) {
        if (error instanceof RuntimeError) throw error;
        if (!o.signal.aborted && wasIdle(error)) return;
        throw noAnswer(what, error, o.signal);
      } finally {
        stop.abort();
        response.body.on("error", () => {});
        response.body.destroy();
      }
    },
    close: async () => {
      await Promise.all([requests.destroy(), watches.destroy()]);
    },
  };
};
