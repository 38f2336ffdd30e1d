import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { configProblems } from "@bulkhead/lib/api/runtime-config.ts";
import { readBounded } from "@bulkhead/lib/std/bounded-file.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { parse } from "smol-toml";
import * as z from "zod";
import { type Endpoint, parseMirror, type Trust, upstreamOf } from "./endpoint.ts";

/**
 * Registries as containerd documents them (certs.d/HOST/hosts.toml), read at each pull: a node that has an engine
 * has its mirrors and certificates there already.
 */

const paths = z.union([z.string(), z.array(z.string())]);
const settings = {
  capabilities: z.array(z.enum(["pull", "resolve", "push", "referrers"])).default(["pull", "resolve"]),
  ca: paths.optional(),
  client: z.union([z.string(), z.array(z.union([z.string(), z.array(z.string())]))]).optional(),
  skip_verify: z.boolean().default(false),
  override_path: z.boolean().default(false),
  header: z.record(z.string(), paths).default({}),
};
const HostsFile = z.object({
  server: z.string().optional(),
  host: z.record(z.string(), z.object(settings)).default({}),
  ...settings,
});
const maxFile = 1 << 20;
type Settings = z.infer<z.ZodObject<typeof settings>>;

/** Endpoints for images of `domain` as its hosts.toml says, in the file's order; undefined without such a file. */
export async function endpointsOfHostsToml(
  directory: string,
  domain: string,
): Promise<Endpoint[] | undefined> {
  // HOST_PORT_ is containerd's name where a file system takes no colon.
  const names = [domain, domain.replace(/:(\d+)$/, "_$1_"), "_default"];
  for (const name of names) {
    const folder = join(directory, name);
    const file = join(folder, "hosts.toml");
    try {
      const text = await readBounded(file, maxFile).catch((error: NodeJS.ErrnoException) => {
        if (["ENOENT", "ENOTDIR"].includes(error.code ?? "")) return undefined;
        throw error;
      });
      if (text !== undefined) return await parseHostsToml(text, domain, folder);
    } catch (error) {
      throw new RuntimeError("failed-precondition", `Cannot use ${file}: ${messageOf(error)}`, {
        cause: error,
      });
    }
  }
  return undefined;
}

/** What a hosts.toml says, its defaults filled in. */
export const parseHostsFile = (text: string): z.infer<typeof HostsFile> => {
  const parsed = HostsFile.safeParse(parse(text));
  if (parsed.success) return parsed.data;
  throw new RuntimeError("failed-precondition", configProblems(parsed.error).join("; "));
};

async function parseHostsToml(text: string, domain: string, folder: string): Promise<Endpoint[]> {
  const file = parseHostsFile(text);
  const server = file.server === undefined ? upstreamOf(domain) : withScheme(file.server);
  const hosts = Object.entries(file.host).map(([host, each]) =>
    endpointOf(withScheme(host), each, domain, folder),
  );
  const all = await Promise.all([...hosts, endpointOf(server, file, domain, folder, true)]);
  // The server often stands among the hosts too, to say more of it there.
  const seen = new Set<string>();
  return all.filter((endpoint) => {
    const fresh = !seen.has(endpoint.api);
    seen.add(endpoint.api);
    return fresh && (endpoint.pull || endpoint.resolve);
  });
}

const withScheme = (host: string): string => (host.includes("://") ? host : `https://${host}`);

async function endpointOf(
  text: string,
  { capabilities, ca, client, skip_verify, override_path, header }: Settings,
  domain: string,
  folder: string,
  upstream = false,
): Promise<Endpoint> {
  const url = parseMirror(text);
  const base = `${url.origin}${url.pathname.replace(/\/+$/, "")}`;
  const read = (path: string): Promise<Buffer> => readFile(resolve(folder, path));
  const [pair] = typeof client === "string" ? [[client]] : (client ?? []);
  const [cert, key] = typeof pair === "string" ? [pair] : (pair ?? []);
  const trust: Trust = {
    ...(ca !== undefined && { ca: await Promise.all([ca].flat().map(read)) }),
    // One file may hold both.
    ...(cert !== undefined && { cert: await read(cert), key: await read(key ?? cert) }),
    ...(skip_verify && { rejectUnauthorized: false }),
  };
  return {
    base,
    api: override_path || base.endsWith("/v2") ? base : `${base}/v2`,
    upstream: upstream || url.host === domain,
    resolve: capabilities.includes("resolve"),
    pull: capabilities.includes("pull"),
    ...(Object.keys(trust).length > 0 && { trust }),
    headers: Object.fromEntries(
      Object.entries(header).map(([name, value]) => [name.toLowerCase(), [value].flat().join(", ")]),
    ),
  };
}
