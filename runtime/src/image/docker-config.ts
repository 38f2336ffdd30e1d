import { readBounded } from "@bulkhead/lib/std/bounded-file.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Logger } from "pino";
import * as z from "zod";
import { type Credentials, credentialsOf } from "./auth.ts";
import { askHelper } from "./credential-helper.ts";

/**
 * Credentials that belong to the node: a docker config.json (auths, credHelpers, credsStore), read at each pull
 * that brings none of its own. Keys are hosts, hosts with a path, "*.host" as the kubelet takes them, or URLs.
 */

const entry = z.object({
  auth: z.string().optional(),
  username: z.string().optional(),
  password: z.string().optional(),
  identitytoken: z.string().optional(),
  registrytoken: z.string().optional(),
});
const helper = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, "is not the name of a credential helper");

export const DockerConfig = z.object({
  auths: z.record(z.string(), entry.nullish()).default({}),
  credHelpers: z.record(z.string(), helper).default({}),
  credsStore: z
    .union([helper, z.literal("")])
    .nullish()
    .transform((name) => name || undefined),
});
export type DockerConfig = z.infer<typeof DockerConfig>;

/** What is asked for: a registry as image references name it, and the repository there. */
export type Whom = { host: string; path: string };

/** Where the credentials for a repository are, by the file alone. */
export type Found =
  | { at: "file"; credentials: Credentials }
  | { at: "helper"; name: string; server: string }
  | { at: "nowhere" };

const maxFile = 1 << 20;

/** Host and path of a key; docker.io has had several names. */
const normal = (key: string): string => {
  const bare = key
    .replace(/^https?:\/\//, "")
    .replace(/\/(?:v[12]\/?)?$/, "")
    .replace(/\/+$/, "");
  return bare.replace(/^(?:index\.docker\.io|registry-1\.docker\.io)(?=\/|$)/, "docker.io");
};

/** How well a key fits, longer paths before shorter, a host in full before a pattern; undefined when it does not. */
const fit = (key: string, { host, path }: Whom): number | undefined => {
  const [keyHost = "", ...rest] = normal(key).split("/");
  const keyPath = rest.join("/");
  if (keyPath !== "" && path !== keyPath && !path.startsWith(`${keyPath}/`)) return undefined;
  if (keyHost === host) return 2 * keyPath.length + 1;
  const labels = keyHost.split(".");
  const own = host.split(".");
  if (!keyHost.includes("*") || labels.length !== own.length) return undefined;
  const same = labels.every((label, n) => {
    if (label === "*") return true;
    const [before, after, ...more] = label.split("*");
    const mine = own[n] ?? "";
    if (after === undefined) return label === mine;
    return (
      more.length === 0 &&
      mine.length >= label.length - 1 &&
      mine.startsWith(before ?? "") &&
      mine.endsWith(after)
    );
  });
  return same ? 2 * keyPath.length : undefined;
};

const best = <T>(entries: Readonly<Record<string, T>>, whom: Whom): [string, T] | undefined =>
  Object.entries(entries)
    .flatMap(([key, value]) => {
      const how = fit(key, whom);
      return how === undefined ? [] : [{ how, key, value }];
    })
    .sort((a, b) => b.how - a.how)
    .map(({ key, value }): [string, T] => [key, value])[0];

/** Decides by the file: a helper named for the registry, an entry of auths, then the store for all. */
export const findCredentials = (config: DockerConfig, whom: Whom): Found => {
  const named = best(config.credHelpers, whom);
  const server = whom.host === "docker.io" ? "https://index.docker.io/v1/" : whom.host;
  if (named !== undefined) return { at: "helper", name: named[1], server };
  // With a store the file keeps empty entries, as marks. One of another registry that is broken is not ours to read.
  const filled = Object.entries(config.auths).filter(
    ([, value]) => value?.username || value?.auth || value?.identitytoken || value?.registrytoken,
  );
  const [key, own] = best(Object.fromEntries(filled), whom) ?? [];
  if (key !== undefined) return { at: "file", credentials: decoded(key, own) };
  return config.credsStore === undefined
    ? { at: "nowhere" }
    : { at: "helper", name: config.credsStore, server };
};

const decoded = (key: string, own: DockerConfig["auths"][string]): Credentials => {
  try {
    return credentialsOf({
      ...(own?.username && { username: own.username, password: own.password ?? "" }),
      ...(own?.auth && { auth: own.auth }),
      ...(own?.identitytoken && { identityToken: own.identitytoken }),
      ...(own?.registrytoken && { registryToken: own.registrytoken }),
    });
  } catch (error) {
    throw new RuntimeError("failed-precondition", `auths.${key}: ${messageOf(error)}`, { cause: error });
  }
};

/** Parses a config.json. Messages never quote it: it holds passwords. */
export const parseDockerConfig = (text: string): DockerConfig => {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new RuntimeError("failed-precondition", "it is not JSON");
  }
  const parsed = DockerConfig.safeParse(json);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new RuntimeError("failed-precondition", `${issue?.path.join(".")}: ${issue?.message}`);
};

/**
 * The node's credentials for a repository. A file or a helper that fails is told in the log, and the pull goes on
 * without: most images need none.
 */
export const readCredentials = async (
  file: string,
  whom: Whom,
  log: Pick<Logger, "warn">,
  signal: AbortSignal,
): Promise<Credentials> => {
  try {
    const text = await readBounded(file, maxFile).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return "{}";
      throw error;
    });
    const found = findCredentials(parseDockerConfig(text), whom);
    if (found.at === "file") return found.credentials;
    if (found.at === "helper") return await askHelper(found.name, found.server, signal);
  } catch (error) {
    signal.throwIfAborted();
    log.warn({ file, registry: whom.host, err: messageOf(error) }, "credentials cannot be read");
  }
  return { kind: "anonymous" };
};
