import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { PullRequest } from "./images.ts";

/** What a user can prove to a registry. */
export type Credentials =
  | { kind: "anonymous" }
  | { kind: "password"; username: string; password: string }
  /** An OAuth2 refresh token, exchanged at the registry's token server. */
  | { kind: "identity"; token: string }
  /** A token that goes to the registry as it is. */
  | { kind: "bearer"; token: string };

/** Reads the AuthConfig of the CRI, whose fields exclude each other in this order. */
export const credentialsOf = (auth: PullRequest["auth"]): Credentials => {
  if (auth?.username) return { kind: "password", username: auth.username, password: auth.password ?? "" };
  if (auth?.identityToken) return { kind: "identity", token: auth.identityToken };
  if (auth?.registryToken) return { kind: "bearer", token: auth.registryToken };
  if (auth?.auth) {
    const decoded = Buffer.from(auth.auth, "base64").toString("utf8").replace(/\0+$/, "");
    const colon = decoded.indexOf(":");
    if (colon < 0) {
      throw new RuntimeError(
        "invalid-argument",
        "Invalid registry credentials: auth is not base64 of user:password",
      );
    }
    return { kind: "password", username: decoded.slice(0, colon), password: decoded.slice(colon + 1) };
  }
  return { kind: "anonymous" };
};

/** True when credentials given for `serverAddress` (a host or a URL; empty for the image's registry) are meant for `host`. */
export const meantFor = (serverAddress: string | undefined, host: string, upstream: boolean): boolean => {
  if (!serverAddress) return upstream;
  const url = URL.parse(serverAddress.includes("://") ? serverAddress : `https://${serverAddress}`);
  if (url === null) return false;
  const same = (name: string): string =>
    name === "index.docker.io" || name === "registry-1.docker.io" ? "docker.io" : name;
  return same(url.host) === same(host);
};

/** One challenge of a WWW-Authenticate header. */
export type Challenge = { scheme: string; parameters: Record<string, string> };

const token = "[!#$%&'*+.^_`|~0-9A-Za-z-]+";
const lexer = new RegExp(
  `\\s*(?:,\\s*)*(${token})(?:\\s*=\\s*(?:"((?:[^"\\\\]|\\\\.)*)"|([^\\s,"]+)))?`,
  "y",
);

/** Parses WWW-Authenticate (RFC 9110, section 11.6.1). What cannot be read ends the list. */
export const parseChallenges = (header: string): Challenge[] => {
  const challenges: Challenge[] = [];
  const text = header.slice(0, 8192);
  lexer.lastIndex = 0;
  for (let match = lexer.exec(text); match !== null; match = lexer.exec(text)) {
    const [, name = "", quoted, plain] = match;
    const value = quoted?.replace(/\\(.)/g, "$1") ?? plain;
    if (value === undefined) challenges.push({ scheme: name.toLowerCase(), parameters: Object.create(null) });
    else {
      const current = challenges.at(-1);
      if (current === undefined) break;
      current.parameters[name.toLowerCase()] = value;
    }
  }
  return challenges;
};
