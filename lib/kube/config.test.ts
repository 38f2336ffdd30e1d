import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { inClusterConfig, kubeconfigFile } from "./config.ts";
import { execPlugin } from "./exec-plugin.ts";

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

/** A program as an exec plugin: `body` may call say, which answers with this status. */
const program = (body: string) => ({
  apiVersion: "client.authentication.k8s.io/v1",
  command: process.execPath,
  args: ["-e", `const say = (status) => console.log(JSON.stringify({ status })); ${body}`],
  env: [{ name: "LOG", value: join(directory, "log") }],
});
const noted = `require("node:fs").appendFileSync(process.env.LOG, process.pid + "\\n");`;
const pids = async () => (await readFile(join(directory, "log"), "utf8")).trim().split("\n").map(Number);

describe("An exec plugin of a kubeconfig", { timeout: 60_000 }, () => {
  test("is asked for a token, which goes with each request", async () => {
    const said = "process.env.KUBERNETES_EXEC_INFO && JSON.parse(process.env.KUBERNETES_EXEC_INFO).spec";
    const user = { exec: program(`say({ token: "interactive " + (${said}).interactive })`) };
    const file = join(directory, "kubeconfig");
    await writeFile(
      file,
      JSON.stringify({
        "current-context": "c",
        clusters: [{ name: "c", cluster: { server: "https://127.0.0.1:1/" } }],
        contexts: [{ name: "c", context: { cluster: "c", user: "u" } }],
        users: [{ name: "u", user }],
      }),
    );
    const config = await kubeconfigFile(file);
    expect(await config.headers()).toEqual({ authorization: "Bearer interactive false" });
    await writeFile(file, (await readFile(file, "utf8")).replace(/"command":"[^"]*"/, '"command":""'));
    await expect(kubeconfigFile(file)).rejects.toThrow(/user "u": exec: /);
  });

  test("runs once for all who wait, and again when what it said has expired", async () => {
    const forGood = execPlugin(program(`${noted} say({ token: "t" })`));
    const all = await Promise.all([forGood(), forGood()]);
    expect([...all, await forGood()].map(({ token }) => token)).toEqual(["t", "t", "t"]);
    expect(await pids()).toHaveLength(1);
    const expired = execPlugin(
      program(`${noted} say({ token: "t", expirationTimestamp: "2026-01-01T00:00:00Z" })`),
    );
    await expired();
    await expired();
    expect(await pids()).toHaveLength(3);
  });

  test("that does not answer is ended after its deadline", async () => {
    const hangs = execPlugin(
      { ...program(""), command: "sh", args: ["-c", 'echo $$ >"$LOG"; exec sleep 1000'] },
      5_000,
    );
    await expect(hangs()).rejects.toMatchObject({
      code: "deadline-exceeded",
      message: expect.stringMatching(
        /^Cannot get credentials from ".*" \(kubeconfig\): no answer after 5 s$/,
      ),
    });
    const [pid = 0] = await pids();
    expect(() => process.kill(pid, 0)).toThrow(/ESRCH/);
  });

  test.each([
    ["fails", `process.stderr.write("log in first"); process.exit(1)`, /: log in first$/],
    ["answers with something else", "console.log('hello')", /: no ExecCredential: /],
    [
      "talks without end",
      "(function more() { process.stdout.write('x'.repeat(65536), more); })()",
      /: .*maxBuffer/,
    ],
    [
      "waits for somebody to type",
      "process.stdin.on('data', say).on('end', () => process.exit(3))",
      /: exit code 3$/,
    ],
  ])("that %s is told in words", async (_what, body, words) => {
    await expect(execPlugin(program(body))()).rejects.toMatchObject({
      code: "permission-denied",
      message: expect.stringMatching(words),
    });
  });
});
