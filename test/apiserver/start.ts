import { type ChildProcess, spawn } from "node:child_process";
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@bulkhead/lib/kube/client.ts";
import { kubeconfigFile } from "@bulkhead/lib/kube/config.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { dump } from "js-yaml";
import { debianProgram, debianPrograms } from "../tools/debian.ts";
import { freePort } from "../tools/free-port.ts";
import { chosenVersions, kube } from "../tools/kubernetes.ts";

/** A real kube-apiserver of the version that `./dev --kubernetes` chose on a real etcd, both on loopback in a directory of their own, without any controller. */
export type ApiServer = AsyncDisposable & {
  url: string;
  port: number;
  directory: string;
  /** kubeconfig file of a member of system:masters. */
  kubeconfig: string;
  /** Stops the API server, leaving etcd and what it holds; `start` brings it back on the same port. */
  stop(): Promise<void>;
  start(): Promise<void>;
};

/** Runs a program whose output goes to a file; it dies with this process. */
const launch = (program: string, args: string[], log: string): ChildProcess => {
  const out = openSync(log, "a");
  try {
    return spawn("setpriv", ["--pdeathsig", "KILL", "--", program, ...args], { stdio: ["ignore", out, out] });
  } finally {
    closeSync(out);
  }
};

const end = async (child: ChildProcess | undefined, signal: NodeJS.Signals): Promise<void> => {
  if (!child || child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, "exit");
  child.kill(signal);
  const timer = setTimeout(() => child.kill("SIGKILL"), 10_000);
  await exited;
  clearTimeout(timer);
};

export const startApiServer = async (options: { flags?: string[] } = {}): Promise<ApiServer> => {
  await using undo = new AsyncDisposableStack();
  const directory = await mkdtemp(join(tmpdir(), "bh-apiserver-"));
  undo.defer(() => rm(directory, { recursive: true, force: true }));
  const [port, etcdPort, peerPort] = [await freePort(), await freePort(), await freePort()];
  const etcdUrl = `http://127.0.0.1:${etcdPort}`;
  const peerUrl = `http://127.0.0.1:${peerPort}`;

  const etcdProgram = await debianProgram(debianPrograms.etcd.pkg, debianPrograms.etcd.path);
  const etcd = launch(
    etcdProgram,
    [
      `--data-dir=${join(directory, "etcd")}`,
      `--listen-client-urls=${etcdUrl}`,
      `--advertise-client-urls=${etcdUrl}`,
      `--listen-peer-urls=${peerUrl}`,
      `--initial-advertise-peer-urls=${peerUrl}`,
      `--initial-cluster=default=${peerUrl}`,
    ],
    join(directory, "etcd.log"),
  );
  undo.defer(() => end(etcd, "SIGKILL"));

  const key = join(directory, "sa.key");
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  await writeFile(key, privateKey.export({ type: "pkcs8", format: "pem" }), { mode: 0o600 });
  const token = randomBytes(16).toString("hex");
  await writeFile(join(directory, "tokens.csv"), `${token},admin,admin,system:masters\n`, { mode: 0o600 });
  // One binary holds all of Kubernetes' programs and looks at its name.
  const program = join(directory, "kube-apiserver");
  await symlink(kube(chosenVersions().controlPlane), program);
  const certificates = join(directory, "certificates");
  const kubeconfig = join(directory, "kubeconfig");
  const log = join(directory, "kube-apiserver.log");
  const url = `https://127.0.0.1:${port}`;

  let child: ChildProcess | undefined;
  const start = async () => {
    child = launch(
      program,
      [
        `--etcd-servers=${etcdUrl}`,
        "--bind-address=127.0.0.1",
        `--secure-port=${port}`,
        `--cert-dir=${certificates}`,
        `--token-auth-file=${join(directory, "tokens.csv")}`,
        `--service-account-issuer=${url}`,
        `--service-account-key-file=${key}`,
        `--service-account-signing-key-file=${key}`,
        "--service-cluster-ip-range=10.0.0.0/24",
        "--authorization-mode=RBAC",
        // Nobody makes service accounts here, and pods must not wait for one.
        "--disable-admission-plugins=ServiceAccount",
        ...(options.flags ?? []),
      ],
      log,
    );
    const deadline = Date.now() + 90_000;
    for (;;) {
      if (child.exitCode !== null || Date.now() > deadline) {
        const said = (await readFile(log, "utf8").catch(() => "")).split("\n").slice(-15).join("\n");
        throw new RuntimeError("unavailable", `Cannot start kube-apiserver:\n${said}`);
      }
      if (await ready(certificates, kubeconfig, port, token)) return;
      await sleep(200);
    }
  };
  undo.defer(() => end(child, "SIGKILL"));
  await start();

  const stack = undo.move();
  return {
    url,
    port,
    directory,
    kubeconfig,
    stop: () => end(child, "SIGKILL"),
    start,
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
};

/** True when the server answers /readyz; the certificate that it makes for itself is there then, too. */
const ready = async (
  certificates: string,
  kubeconfig: string,
  port: number,
  token: string,
): Promise<boolean> => {
  const ca = await readFile(join(certificates, "apiserver.crt"), "utf8").catch(() => undefined);
  if (!ca) return false;
  await writeFile(
    kubeconfig,
    dump({
      apiVersion: "v1",
      kind: "Config",
      "current-context": "test",
      clusters: [
        {
          name: "test",
          cluster: {
            server: `https://127.0.0.1:${port}`,
            "certificate-authority-data": Buffer.from(ca).toString("base64"),
            "tls-server-name": "kubernetes.default.svc",
          },
        },
      ],
      users: [{ name: "admin", user: { token } }],
      contexts: [{ name: "test", context: { cluster: "test", user: "admin" } }],
    }),
    { mode: 0o600 },
  );
  const client = createClient({ config: await kubeconfigFile(kubeconfig), timeoutMs: 2_000, attempts: 1 });
  try {
    // The default namespace is made late: with it, the server is ready for objects of any kind.
    await client.get(
      { apiVersion: "v1", kind: "Namespace", plural: "namespaces", namespaced: false },
      "default",
    );
    return true;
  } catch {
    return false;
  } finally {
    await client.close();
  }
};
