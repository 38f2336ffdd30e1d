import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { endpointsOfHostsToml } from "./hosts-toml.ts";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "bh-hosts-"));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

const write = async (name: string, text: string): Promise<void> => {
  await mkdir(join(dir, name), { recursive: true });
  await writeFile(join(dir, name, "hosts.toml"), text);
};

test("Without a file for the registry nothing is said", async () => {
  expect(await endpointsOfHostsToml(dir, "registry.example:5000")).toBeUndefined();
});

test("Hosts come in the file's order, then the server; each once", async () => {
  await write(
    "registry.example:5000",
    `server = "http://registry.example:5000"
[host."https://mirror.example/cache"]
capabilities = ["pull"]
[host."http://registry.example:5000"]
capabilities = ["pull", "resolve"]
`,
  );
  expect(await endpointsOfHostsToml(dir, "registry.example:5000")).toMatchObject([
    { api: "https://mirror.example/cache/v2", upstream: false, resolve: false, pull: true },
    { api: "http://registry.example:5000/v2", upstream: true, resolve: true },
  ]);
});

test("A path is left as it is with override_path, and files are found beside hosts.toml", async () => {
  await write(
    "a.example_5000_",
    `[host."https://m.example/api"]\noverride_path = true\nca = "ca.pem"\nskip_verify = true\n[host."https://m.example/api".header]\nX-Team = "one"\n`,
  );
  await writeFile(join(dir, "a.example_5000_", "ca.pem"), "certificate");
  const [first, server] = (await endpointsOfHostsToml(dir, "a.example:5000")) ?? [];
  expect(first).toMatchObject({
    api: "https://m.example/api",
    trust: { ca: [Buffer.from("certificate")], rejectUnauthorized: false },
    headers: { "x-team": "one" },
  });
  expect(server).toMatchObject({ api: "https://a.example:5000/v2", upstream: true });
});

test("_default stands for registries without a file of their own", async () => {
  await write("_default", `[host."http://everything.example"]\n`);
  expect((await endpointsOfHostsToml(dir, "x.example"))?.[0]?.api).toBe("http://everything.example/v2");
});

test("A file that is wrong is refused by its name", async () => {
  await write("x.example", `[host."ftp://x"]\n`);
  await expect(endpointsOfHostsToml(dir, "x.example")).rejects.toThrow(
    `Cannot use ${dir}/x.example/hosts.toml`,
  );
});

test("A registry on loopback is asked in the clear behind its mirrors, too", async () => {
  await write("localhost:5000", '[host."https://mirror.example"]\n');
  const endpoints = await endpointsOfHostsToml(dir, "localhost:5000");
  expect(endpoints?.map(({ base }) => base)).toEqual(["https://mirror.example", "http://localhost:5000"]);
});

test("What is wrong is told by file and field", async () => {
  await write("r.example", '[host."https://m.example"]\ncapabilities = ["fetch"]\n');
  await expect(endpointsOfHostsToml(dir, "r.example")).rejects.toThrow(
    /^Cannot use .*r\.example\/hosts\.toml: host\.https:\/\/m\.example\.capabilities\.0: /,
  );
});
