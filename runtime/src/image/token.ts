import { createHash } from "node:crypto";
import type { Dispatcher } from "undici";
import * as z from "zod";
import { type Credentials, parseChallenges } from "./auth.ts";
import type { Trust } from "./endpoint.ts";
import { EndpointError } from "./endpoint-error.ts";
import { collect, discard, errorDetail, headerOf, parseJson } from "./response.ts";
import type { Transport } from "./transport.ts";

/** Whom a token is for: one repository of one endpoint, for one user. */
export type Bearer = { base: string; path: string; credentials: Credentials; trust: Trust };

const tokenResponse = z.object({
  token: z.string().optional(),
  access_token: z.string().optional(),
  expires_in: z.number().optional(),
});

/** The shortest life that the distribution token specification lets a token have. */
const defaultSeconds = 60;
const maxSeconds = 3600;
/** A token is not used in its last seconds: it must live as long as the request. */
const marginSeconds = 10;
const maxTokens = 1000;

/** Answers registries' challenges, and remembers tokens by their scope until they end. */
export class Tokens {
  readonly #transport: Pick<Transport, "exchange" | "trustOf">;
  readonly #known = new Map<string, { authorization: string; expires: number }>();

  constructor(transport: Pick<Transport, "exchange" | "trustOf">) {
    this.#transport = transport;
  }

  /** What is known to work: a remembered token, or one that the user brought. */
  known(whom: Bearer): string | undefined {
    if (whom.credentials.kind === "bearer") return `Bearer ${whom.credentials.token}`;
    const cached = this.#known.get(keyOf(whom));
    return cached !== undefined && cached.expires > performance.now() ? cached.authorization : undefined;
  }

  /** Answers a challenge by the distribution token specification or with basic authentication. */
  async answer(
    whom: Bearer,
    challenge: string,
    refused: string | undefined,
    signal: AbortSignal,
  ): Promise<string | undefined> {
    const challenges = parseChallenges(challenge);
    const bearer = challenges.find(({ scheme }) => scheme === "bearer");
    const basic = challenges.find(({ scheme }) => scheme === "basic");
    const { credentials } = whom;
    if (credentials.kind === "bearer") return undefined;
    if (bearer !== undefined) return await this.#fetch(whom, bearer.parameters, signal);
    if (basic !== undefined && credentials.kind === "password") {
      const authorization = basicOf(credentials);
      if (authorization === refused) return undefined;
      this.#remember(whom, authorization, 300);
      return authorization;
    }
    return undefined;
  }

  async #fetch(whom: Bearer, parameters: Record<string, string>, signal: AbortSignal): Promise<string> {
    const { base, path, credentials } = whom;
    const realm = realmOf(parameters.realm, new URL(base));
    if (realm === undefined) throw new EndpointError("denied", `${base} names no usable token server`);
    const query = new URLSearchParams();
    if (parameters.service !== undefined) query.set("service", parameters.service);
    // Never more than this pull needs, whatever the registry asks for.
    query.set("scope", `repository:${path}:pull`);
    const trust = await this.#trustOf(realm, whom);
    let response: Dispatcher.ResponseData;
    if (credentials.kind === "identity") {
      query.set("grant_type", "refresh_token");
      query.set("client_id", "bulkhead");
      query.set("refresh_token", credentials.token);
      const headers = { "content-type": "application/x-www-form-urlencoded" };
      response = await this.#transport.exchange({ url: realm, headers, trust }, "POST", `${query}`, signal);
    } else {
      const url = new URL(realm);
      for (const [name, value] of query) url.searchParams.set(name, value);
      if (credentials.kind === "password") url.searchParams.set("account", credentials.username);
      const headers =
        credentials.kind === "password" ? { authorization: basicOf(credentials) } : ({} as const);
      response = await this.#transport.exchange({ url, headers, trust }, "GET", undefined, signal);
    }
    if (response.statusCode !== 200) {
      if (headerOf(response, "location") !== undefined) {
        await discard(response);
        throw new EndpointError("denied", `token server ${realm.host} redirects, which is not followed`);
      }
      const kind = response.statusCode === 429 || response.statusCode >= 500 ? "unavailable" : "denied";
      const detail = await errorDetail(response);
      throw new EndpointError(
        kind,
        `token server ${realm.host} answered ${response.statusCode}${detail} for ${path}`,
      );
    }
    const parsed = tokenResponse.safeParse(parseJson(await collect(response, 1 << 20, "token")));
    const token = parsed.data?.token || parsed.data?.access_token;
    if (!token || /[^\x21-\x7e]/.test(token)) {
      throw new EndpointError("denied", `token server ${realm.host} sent no token`);
    }
    this.#remember(whom, `Bearer ${token}`, parsed.data?.expires_in ?? defaultSeconds);
    return `Bearer ${token}`;
  }

  /** A token server often shares the registry's private authority; its client key it never gets. */
  async #trustOf(realm: URL, { base, trust }: Bearer): Promise<Trust> {
    if (realm.hostname === new URL(base).hostname) return trust;
    const own = await this.#transport.trustOf(realm);
    return own.ca === undefined && trust.ca !== undefined ? { ...own, ca: trust.ca } : own;
  }

  #remember(whom: Bearer, authorization: string, seconds: number): void {
    const now = performance.now();
    for (const [key, token] of this.#known) if (token.expires <= now) this.#known.delete(key);
    const life = Math.min(Math.max(0, seconds - marginSeconds), maxSeconds);
    if (!(life > 0) || this.#known.size >= maxTokens) return;
    this.#known.set(keyOf(whom), { authorization, expires: now + life * 1000 });
  }
}

/** No password outlives its pull in memory: the key holds a digest of it. */
const keyOf = ({ base, path, credentials }: Bearer): string =>
  createHash("sha256")
    .update(JSON.stringify([base, path, credentials]))
    .digest("hex");

const basicOf = ({ username, password }: { username: string; password: string }): string =>
  `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}`;

/**
 * The token server that a registry names, or undefined for one that no password may go to: over TLS anywhere; in
 * the clear only when the registry itself is spoken to in the clear, and only on the registry's own host.
 */
export const realmOf = (text: string | undefined, base: URL): URL | undefined => {
  const realm = URL.parse(text ?? "");
  if (realm === null || realm.username !== "" || realm.password !== "") return undefined;
  realm.hash = "";
  if (realm.protocol === "https:") return realm;
  return realm.protocol === "http:" && base.protocol === "http:" && realm.hostname === base.hostname
    ? realm
    : undefined;
};
