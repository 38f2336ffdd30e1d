import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { inClusterConfig, kubeconfigFile } from "./config.ts";

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "bh-config-"));
  await writeFile(join(directory, "ca.crt"), "the CA");
  await writeFile(join(directory, "token"), "one\n");
});
afterEach(() => rm(directory, { recursive: true, force: true }));

const env = { KUBERNETES_SERVICE_HOST: "fd00::1", KUBERNETES_SERVICE_PORT_HTTPS: "6443" };

test("In a pod the API server is its service, IPv6 too, and the token is read anew after a minute", async () => {
  let now = 0;
  const config = await inClusterConfig({ env, directory, now: () => now });
  expect(config.server).toBe("https://[fd00::1]:6443");
  expect(String(config.tls.ca)).toBe("the CA");
  expect(await config.headers()).toEqual({ authorization: "Bearer one" });
  await writeFile(join(directory, "token"), "two\n");
  expect(await config.headers()).toEqual({ authorization: "Bearer one" });
  now = 60_001;
  expect(await config.headers()).toEqual({ authorization: "Bearer two" });
});

test("A clock that is set back keeps no token longer", async () => {
  vi.useFakeTimers({ toFake: ["Date", "performance"] });
  try {
    const config = await inClusterConfig({ env, directory });
    expect(await config.headers()).toEqual({ authorization: "Bearer one" });
    await writeFile(join(directory, "token"), "two\n");
    vi.advanceTimersByTime(60_001);
    vi.setSystemTime(0);
    expect(await config.headers()).toEqual({ authorization: "Bearer two" });
  } finally {
    vi.useRealTimers();
  }
});

test("Outside a pod, without a kubeconfig, the error says what is missing", async () => {
  await expect(inClusterConfig({ env: {}, directory })).rejects.toThrow("KUBERNETES_SERVICE_HOST is not set");
});

// The first use loads @kubernetes/client-node, which takes seconds on a busy machine.
test("A kubeconfig that is not there or has no cluster is named in the error", {
  timeout: 60_000,
}, async () => {
  await expect(kubeconfigFile(join(directory, "none"))).rejects.toMatchObject({ code: "invalid-argument" });
  const empty = join(directory, "empty");
  await writeFile(empty, "apiVersion: v1\nkind: Config\nclusters: []\ncontexts: []\nusers: []\n");
  await expect(kubeconfigFile(empty)).rejects.toThrow("it has no current cluster");
});
