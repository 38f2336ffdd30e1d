import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** Where one registry's images can be had. */
export type Endpoint = {
  /** Scheme, host and a path before /v2/, without a slash at the end. */
  base: string;
  /** What paths of the distribution API are appended to: `base`/v2, unless the configuration says otherwise. */
  api: string;
  /** The registry itself, as opposed to a mirror of it. */
  upstream: boolean;
  /** Whether tags may be asked for here. */
  resolve: boolean;
  /** Whether manifests and blobs may be fetched here by digest. */
  pull: boolean;
  /** What TLS is checked with, where the endpoint's own configuration says so. */
  trust?: Trust;
  /** Sent with every request. */
  headers: Readonly<Record<string, string>>;
};

const loopback = /^(?:localhost|127(?:\.[0-9]+){3}|\[::1\])(?::[0-9]+)?$/;

/**
 * The endpoints to ask for images of `domain`: its mirrors in their order, then the registry. A registry on the
 * loopback interface is spoken to in plain HTTP, any other over TLS; an http:// URL among its own mirrors says otherwise.
 */
export const endpointsOf = (
  domain: string,
  mirrors: Readonly<Record<string, readonly string[]>>,
): Endpoint[] => {
  const upstream = plain(upstreamOf(domain), true);
  const own = (mirrors[domain] ?? []).map((text): Endpoint => {
    const url = parseMirror(text);
    return plain(`${url.origin}${url.pathname.replace(/\/+$/, "")}`, url.host === domain);
  });
  // A "mirror" of the same host says how to reach it, so nothing else is tried.
  return own.some((endpoint) => endpoint.upstream) ? own : [...own, upstream];
};

/** The registry itself, where nothing says otherwise. */
export const upstreamOf = (domain: string): string =>
  `${loopback.test(domain) ? "http" : "https"}://${domain === "docker.io" ? "registry-1.docker.io" : domain}`;

const plain = (base: string, upstream: boolean): Endpoint => ({
  base,
  api: `${base}/v2`,
  upstream,
  resolve: true,
  pull: true,
  headers: {},
});

/** Parses the URL of a mirror: http or https, without credentials, query or fragment. */
export const parseMirror = (text: string): URL => {
  const url = URL.parse(text);
  if (
    url === null ||
    !/^https?:$/.test(url.protocol) ||
    url.username !== "" ||
    url.search !== "" ||
    url.hash !== ""
  ) {
    throw new RuntimeError(
      "invalid-argument",
      `Invalid mirror "${text}": it must be http://HOST[:PORT][/PATH] or https://…`,
    );
  }
  return url;
};

/** What TLS to a registry is checked and shown with. */
export type Trust = { ca?: Buffer[]; cert?: Buffer; key?: Buffer; rejectUnauthorized?: boolean };

/** Reads DIR/HOST:PORT/{*.crt, *.cert + *.key}, the layout that Docker and containerd document for certs.d. */
export const readTrust = async (directory: string | undefined, host: string): Promise<Trust> => {
  if (directory === undefined) return {};
  const folder = join(directory, host);
  const names = await readdir(folder).catch(() => []);
  const read = (name: string): Promise<Buffer> => readFile(join(folder, name));
  const ca = await Promise.all(names.filter((name) => name.endsWith(".crt")).map(read));
  const cert = names.find((name) => name.endsWith(".cert"));
  const key = names.find((name) => name.endsWith(".key"));
  return {
    ...(ca.length > 0 ? { ca } : {}),
    ...(cert !== undefined && key !== undefined ? { cert: await read(cert), key: await read(key) } : {}),
  };
};
