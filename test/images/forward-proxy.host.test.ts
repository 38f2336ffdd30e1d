import { execFileSync } from "node:child_process";
import { cp, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { run } from "../tools/run.ts";
import { type ForwardProxy, startForwardProxy } from "./forward-proxy.ts";
import { type RunningRegistry, startRegistry } from "./registry.ts";
import { gzipLayer, never, push, text, useStore } from "./store-fixture.ts";

/* What is on loopback is never asked through a proxy: the registries here have an address of their own (TEST-NET-1). */

const use = useStore();
const device = `bhp${process.pid % 100_000}`;
const address = "192.0.2.77";
const user = { user: "bulkhead", password: "open-sesame" };

const undo = new AsyncDisposableStack();
let proxy: ForwardProxy;
let plain: RunningRegistry;
let secure: RunningRegistry;

beforeAll(async () => {
  execFileSync("ip", ["link", "add", device, "type", "bridge"]);
  undo.defer(() => void execFileSync("ip", ["link", "del", device]));
  execFileSync("ip", ["addr", "add", `${address}/32`, "dev", device]);
  execFileSync("ip", ["link", "set", device, "up"]);
  const [content, dir] = [join(use.scratch, "behind"), join(use.scratch, "behind-tls")];
  for (const each of [content, dir]) await mkdir(each);
  plain = undo.use(await startRegistry({ dir: content, address }));
  await push({ url: plain.url, repository: "case/image" }, "1", [gzipLayer(text("f", "through"))]);
  const [cert, key] = [join(dir, "tls.crt"), join(dir, "tls.key")];
  const kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  const names = ["-subj", "/CN=registry", "-addext", `subjectAltName=IP:${address}`];
  await run(["openssl", "req", ...kind, ...names, "-keyout", key, "-out", cert]);
  await cp(join(content, "content"), join(dir, "content"), { recursive: true });
  secure = undo.use(await startRegistry({ dir, address, tls: { cert, key } }));
  proxy = undo.use(await startForwardProxy(use.scratch, user));
});
afterAll(() => undo.disposeAsync());

const variables = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"] as const;
const before = Object.fromEntries(variables.map((name) => [name, process.env[name]]));
afterEach(() => {
  for (const name of variables) {
    const value = before[name];
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
});

/** The next pull comes from a daemon that was started with these variables. */
const withEnvironment = async (environment: Partial<Record<(typeof variables)[number], string>>) => {
  for (const name of variables) delete process.env[name];
  Object.assign(process.env, environment);
  const certsDir = join(use.root, "certs.d");
  await mkdir(join(certsDir, secure.host), { recursive: true });
  await cp(join(use.scratch, "behind-tls", "tls.crt"), join(certsDir, secure.host, "ca.crt"));
  await writeFile(join(certsDir, "README"), "");
  await use.reopen({ certsDir, mirrors: { [plain.host]: [plain.url] } });
  await proxy.asked();
};
const withCredentials = (): string => `http://${user.user}:${user.password}@${proxy.host}`;
const pull = (registry: RunningRegistry) => use.images.pull({ ref: `${registry.host}/case/image:1` }, never);

describe("A pull through tinyproxy, which wants a password", () => {
  test("of a registry in the clear asks the proxy for whole URLs", async () => {
    await withEnvironment({ HTTP_PROXY: withCredentials() });
    const image = await pull(plain);
    expect(await use.read(image.layers, "f")).toEqual(["through"]);
    const asked = await proxy.asked();
    expect(asked[0]).toBe(`GET http://${plain.host}/v2/case/image/manifests/1`);
    expect(asked.filter((line) => line.startsWith("CONNECT"))).toEqual([]);
  });

  test("of a registry behind TLS goes through a tunnel, and its certificate is checked at the other end", async () => {
    await withEnvironment({ HTTPS_PROXY: withCredentials() });
    const image = await pull(secure);
    expect(await use.read(image.layers, "f")).toEqual(["through"]);
    expect(new Set(await proxy.asked())).toEqual(new Set([`CONNECT ${secure.host}`]));
    await use.reopen({});
    await expect(pull(secure)).rejects.toThrow(/^RegistryUnavailable: .*certificate/);
  });

  test("goes past it where NO_PROXY says so, and where the variable is of the other scheme", async () => {
    await withEnvironment({ HTTP_PROXY: withCredentials(), NO_PROXY: "192.0.2.0/24" });
    await pull(plain);
    await withEnvironment({ HTTPS_PROXY: withCredentials() });
    await pull(plain);
    expect(await proxy.asked()).toEqual([]);
  });

  test.each([
    ["a wrong password", () => `http://bulkhead:wrong@${proxy.host}`],
    ["none", () => `http://${proxy.host}`],
  ])("with %s is refused in words that hold no password", async (_, url) => {
    await withEnvironment({ HTTP_PROXY: url(), HTTPS_PROXY: url() });
    for (const registry of [plain, secure]) {
      const refused = await pull(registry).catch((error: Error) => error.message);
      expect(refused).toMatch(/40[17]|[Pp]roxy/);
      expect(refused).not.toContain("wrong");
    }
  });

  test("that does not answer is RegistryUnavailable", async () => {
    await withEnvironment({ HTTP_PROXY: "http://127.0.0.1:1", HTTPS_PROXY: "http://127.0.0.1:1" });
    for (const registry of [plain, secure])
      await expect(pull(registry)).rejects.toThrow(/^RegistryUnavailable: /);
  });
});
