import { BlockList, isIP } from "node:net";

/**
 * Which proxy a URL is asked through, by HTTP_PROXY, HTTPS_PROXY and NO_PROXY as the other engines read them (Go's
 * httpproxy): lower case before upper case; NO_PROXY takes hosts, .domains, host:port, addresses, networks and "*".
 */
export const proxyFor = (url: URL, env: Readonly<Record<string, string | undefined>>): URL | undefined => {
  const named = (name: string): string => env[name.toLowerCase()] || env[name] || "";
  const text = named(url.protocol === "https:" ? "HTTPS_PROXY" : "HTTP_PROXY");
  if (text === "") return undefined;
  const host = url.hostname.replace(/^\[|\]$/g, "").toLowerCase();
  if (isLoopback(host)) return undefined;
  const port = url.port || (url.protocol === "https:" ? "443" : "80");
  const excluded = named("NO_PROXY")
    .split(",")
    .some((entry) => matches(entry.trim().toLowerCase(), host, port));
  if (excluded) return undefined;
  const proxy = URL.parse(/^[a-z][a-z0-9+.-]*:\/\//i.test(text) ? text : `http://${text}`);
  return proxy !== null && /^https?:$/.test(proxy.protocol) ? proxy : undefined;
};

const isLoopback = (host: string): boolean =>
  host === "localhost" || host.endsWith(".localhost") || host === "::1" || /^127(\.[0-9]+){3}$/.test(host);

const matches = (entry: string, host: string, port: string): boolean => {
  if (entry === "") return false;
  if (entry === "*") return true;
  const [network = "", prefix] = entry.split("/");
  const family = isIP(network);
  if (prefix !== undefined) {
    const bits = Number(prefix);
    if (family === 0 || isIP(host) === 0 || !/^[0-9]{1,3}$/.test(prefix) || bits > (family === 4 ? 32 : 128))
      return false;
    const list = new BlockList();
    list.addSubnet(network, bits, family === 4 ? "ipv4" : "ipv6");
    return list.check(host, isIP(host) === 4 ? "ipv4" : "ipv6");
  }
  if (family !== 0) return entry === host;
  const [, name = "", wanted] = /^(.*?)(?::([0-9]+))?$/.exec(entry) ?? [];
  if (wanted !== undefined && wanted !== port) return false;
  const bare = name.replace(/^\[|\]$/g, "").replace(/^\*\./, ".");
  return bare.startsWith(".") ? host.endsWith(bare) : host === bare || host.endsWith(`.${bare}`);
};
