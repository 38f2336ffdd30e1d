import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createWriteStream, existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { readSysctls, type Sysctls, writeSysctls } from "../cluster/sysctls.ts";
import { createDaemon, type Daemon } from "../cri/daemon.ts";
import { ensureTestImages } from "../images/build.ts";
import { pushCheckpoint } from "../images/checkpoint.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { podOf } from "../pods/kube.ts";
import { inCache } from "../tools/cache.ts";
import { chosenVersions, kube } from "../tools/kubernetes.ts";
import { outcome } from "../tools/run.ts";

/**
 * The kubelet's gate ContainerCheckpoint with a gVisor pod: a real kubelet without an API server, whose pods are files
 * and whose default handler is gVisor's.
 */

const port = 10_950;
const node = "gates";
const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
const counting = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done";

/** Where every kubelet of the machine listens for device plugins. */
const sockets = "/var/lib/kubelet/device-plugins";
const hadSockets = existsSync(sockets);

let dir: string;
let registry: RunningRegistry;
let daemon: Daemon;
let sysctls: Sysctls;
let kubelet: ChildProcess;

const configuration = (): object => ({
  apiVersion: "kubelet.config.k8s.io/v1beta1",
  kind: "KubeletConfiguration",
  containerRuntimeEndpoint: `unix://${daemon.socket}`,
  authentication: { anonymous: { enabled: true }, webhook: { enabled: false } },
  authorization: { mode: "AlwaysAllow" },
  featureGates: { ContainerCheckpoint: true },
  address: "127.0.0.1",
  port,
  healthzPort: 0,
  staticPodPath: join(dir, "manifests"),
  podLogsDir: join(dir, "logs"),
  volumePluginDir: join(dir, "plugins"),
  enableServer: true,
  // Pods of the machine's other nodes are not this one's business, nor are its cgroups, iptables and disks.
  cgroupsPerQOS: false,
  enforceNodeAllocatable: [],
  makeIPTablesUtilChains: false,
  failCgroupV1: false,
  failSwapOn: false,
  localStorageCapacityIsolation: false,
  imageGCHighThresholdPercent: 100,
  imageGCLowThresholdPercent: 99,
  evictionHard: { "memory.available": "10Mi", "nodefs.available": "0%", "imagefs.available": "0%" },
  fileCheckFrequency: "1s",
  syncFrequency: "2s",
});

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "bh-gate-"));
  for (const name of ["manifests", "logs", "plugins", "root"]) await mkdir(join(dir, name));
  registry = await startRegistry({ dir: inCache("cri-registry") });
  await ensureTestImages(registry.host, ["e2e-test-images/busybox:1.29-2"]);
  daemon = await createDaemon({ registry: registry.host, subnet: 91 });
  // Without an API server there are no classes: the handler that has the default's name is gVisor's.
  const gvisor = JSON.parse(await readFile(join(daemon.handlersDir, "gvisor.yaml"), "utf8"));
  await writeFile(join(daemon.handlersDir, "runc.yaml"), JSON.stringify({ ...gvisor, name: "runc" }));
  await daemon.start();
  sysctls = await readSysctls();
  await writeFile(join(dir, "kubelet.yaml"), JSON.stringify(configuration()));
  const flags = {
    config: join(dir, "kubelet.yaml"),
    "root-dir": join(dir, "root"),
    "cert-dir": join(dir, "pki"),
    "hostname-override": node,
  };
  kubelet = spawn(
    kube(chosenVersions().kubelet),
    Object.entries(flags).map(([name, value]) => `--${name}=${value}`),
    { argv0: "kubelet", stdio: ["ignore", "ignore", "pipe"] },
  );
  kubelet.stderr?.pipe(createWriteStream(join(dir, "kubelet.log")));
});
afterAll(async () => {
  if (kubelet?.exitCode === null) {
    const ended = once(kubelet, "exit");
    kubelet.kill("SIGTERM");
    await ended;
  }
  if (sysctls) await writeSysctls(sysctls);
  await daemon?.[Symbol.asyncDispose]();
  await registry?.stop();
  // The kubelet mounts its directory on itself, and has these two of the machine's.
  if (!hadSockets) await rm(sockets, { recursive: true, force: true });
  await outcome(["umount", "-R", "-l", join(dir, "root")]);
  for (const name of await readdir("/var/log/containers").catch(() => []))
    if (name.includes(`-${node}_default_main-`)) await rm(join("/var/log/containers", name));
  await rm(dir, { recursive: true, force: true });
});

const ask = async (method: string, path: string): Promise<string> => {
  const call = request({ host: "127.0.0.1", port, path, method, rejectUnauthorized: false, timeout: 30_000 });
  call.end();
  const [answer] = await once(call, "response");
  const said = await text(answer);
  if (answer.statusCode !== 200) throw new Error(`${method} ${path}: ${answer.statusCode} ${said}`);
  return said;
};
const place = (name: string, image: string, annotations = {}) => {
  const { metadata, ...rest } = podOf(name, undefined, image, { command: ["sh", "-c", counting] });
  const pod = { ...rest, metadata: { ...metadata, namespace: "default", annotations } };
  return writeFile(join(dir, "manifests", `${name}.json`), JSON.stringify(pod));
};
const numbers = async (name: string): Promise<number[]> =>
  (await ask("GET", `/containerLogs/default/${name}-${node}/main`)).trim().split("\n").map(Number);
const counts = (name: string, more: number) =>
  vi.waitFor(async () => expect((await numbers(name)).length).toBeGreaterThan(more), {
    timeout: 50_000,
    interval: 500,
  });

test("the kubelet's /checkpoint saves a gVisor pod, which goes on; a pod of an image made of it goes on from there", async () => {
  await place("saved", busybox);
  await counts("saved", 5);
  const { items } = JSON.parse(await ask("POST", `/checkpoint/default/saved-${node}/main`)) as {
    items: string[];
  };
  const [archive = ""] = items;
  expect(archive).toContain(join(dir, "root/checkpoints/checkpoint-saved-gates_default-main-"));
  expect((await stat(archive)).mode & 0o7777).toBe(0o600);
  expect(basename(archive)).toMatch(/\.tar$/);
  await counts("saved", (await numbers("saved")).length);
  await rm(join(dir, "manifests/saved.json"));
  await pushCheckpoint(registry.url, "saved/gate:1", await readFile(archive), {
    "io.kubernetes.cri-o.annotations.checkpoint.name": "saved",
  });
  await place("restored", "registry.k8s.io/saved/gate:1", { "bulkhead.dev/restore": "true" });
  await counts("restored", 3);
  expect((await numbers("restored"))[0]).toBeGreaterThan(5);
  await rm(join(dir, "manifests/restored.json"));
  await vi.waitFor(async () => expect(await daemon.crictl("ps", "-q")).toBe(""), { timeout: 50_000 });
}, 180_000);
