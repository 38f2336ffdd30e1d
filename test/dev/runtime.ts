import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, rm, rmdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { until } from "../cluster/cluster.ts";
import { cgroupDirs, unmountBelow } from "../cluster/mounts.ts";
import { clusterProcesses, endProcesses, startDaemon } from "../cluster/process.ts";
import { mirroredHosts } from "../cri/critest.ts";
import { gvisorHandler, shimHandler } from "../cri/handlers.ts";
import { ensureTestImages } from "../images/build.ts";
import { prepareRegistry } from "../images/registry.ts";
import { inCache, tool } from "../tools/cache.ts";
import { outcome } from "../tools/run.ts";

/** What `./dev runtime up` takes. */
export type RuntimeOptions = {
  socket?: string;
  root?: string;
  state?: string;
  /** HOST=URL: ask this URL before the registry HOST. */
  mirror: readonly string[];
  /** Start a registry with all test images too, and ask it before those that the images are named by. */
  testImages?: boolean;
};

const home = "/run/bulkhead-dev-runtime";
const recordPath = join(home, "record.json");
const bridge = "bhdr0";
/** Marks the daemon's processes, as clusters' ones are. */
const marker = "dev-runtime";

type RuntimeRecord = {
  socket: string;
  root: string;
  state: string;
  log: string;
  /** URL of the registry with the test images, where there is one. */
  registry?: string;
};

/** The daemon that `./dev runtime up` started, if there is one. */
export const runtimeRecord = async (): Promise<RuntimeRecord | undefined> => {
  const text = await readFile(recordPath, "utf8").catch(() => undefined);
  return text === undefined ? undefined : (JSON.parse(text) as RuntimeRecord);
};

/** Starts the CRI daemon alone on this machine, with runc and gVisor, on a pod network of its own. */
export const runtimeUp = async (options: RuntimeOptions, signal: AbortSignal): Promise<RuntimeRecord> => {
  const known = await runtimeRecord();
  if (known !== undefined && (await runs())) {
    const other = (["socket", "root", "state"] as const).find(
      (key) => (options[key] ?? known[key]) !== known[key],
    );
    const lacksImages = options.testImages === true && known.registry === undefined;
    if (other === undefined && options.mirror.length === 0 && !lacksImages) return known;
    throw new RuntimeError(
      "failed-precondition",
      `Cannot start the runtime: it runs on ${known.socket}; ./dev runtime down first`,
    );
  }
  if (known !== undefined) await runtimeDown();
  const record: RuntimeRecord = {
    socket: options.socket ?? join(home, "cri.sock"),
    root: options.root ?? inCache("runtime", "root"),
    state: options.state ?? join(home, "state"),
    log: inCache("runtime", "runtime.log"),
  };
  for (const dir of [options.root, options.state]) if (dir !== undefined) await requireEmpty(dir);
  await mkdir(home, { recursive: true });
  await writeFile(recordPath, JSON.stringify(record, undefined, 2));
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => void (await runtimeDown()));
  for (const dir of [
    record.root,
    record.state,
    dirname(record.socket),
    dirname(record.log),
    join(home, "cni"),
    join(home, "handlers.d"),
  ])
    await mkdir(dir, { recursive: true });
  await writeFile(join(home, "cni/10-pods.conflist"), JSON.stringify(podNetwork));
  const handler = await gvisorHandler(home, join(home, "runsc"));
  await writeFile(join(home, "handlers.d/gvisor.yaml"), JSON.stringify(handler));
  await writeFile(join(home, "crictl.yaml"), `runtime-endpoint: unix://${record.socket}\ntimeout: 30\n`);
  await writeFile(join(home, "runtime.yaml"), JSON.stringify(configuration));
  await rm(record.log, { force: true });
  const mirrors = [...options.mirror];
  if (options.testImages === true) {
    record.registry = await startTestImages(signal);
    await writeFile(recordPath, JSON.stringify(record, undefined, 2));
    for (const host of mirroredHosts) mirrors.push(`${host}=${record.registry}`);
  }
  await startRuntime(
    record,
    mirrors.flatMap((each) => ["--mirror", each]),
    signal,
  );
  undo.move();
  return record;
};

/** A registry that outlives us, with every test image in it; returns its URL. */
const startTestImages = async (signal: AbortSignal): Promise<string> => {
  const { argv, url, log } = await prepareRegistry({ dir: inCache("critest") });
  await startDaemon(marker, { component: "registry", log, argv });
  await until(signal, 30_000, `the registry (log: ${log})`, async () => {
    const answer = await fetch(`${url}/v2/`, { signal: AbortSignal.timeout(2000) }).catch(() => undefined);
    return answer?.ok === true;
  });
  await ensureTestImages(url);
  return url;
};

/** The handler `shim`, containerd's own shim for runc: a running daemon takes it up at once. */
export const addShimHandler = async (): Promise<void> => {
  const file = join(home, "handlers.d/shim.yaml");
  if (!existsSync(file)) await writeFile(file, JSON.stringify(shimHandler()));
};

/** Down removes these directories as they are, so they must hold nothing of anybody else's. */
const requireEmpty = async (dir: string): Promise<void> => {
  const names = await readdir(dir).catch(() => []);
  if (names.length > 0)
    throw new RuntimeError(
      "failed-precondition",
      `Cannot use ${dir}: it is not empty, and ./dev runtime down would remove what is in it`,
    );
};

const startRuntime = async (
  record: RuntimeRecord,
  flags: readonly string[],
  signal: AbortSignal,
): Promise<void> => {
  const main = join(import.meta.dirname, "../../runtime/src/main.ts");
  await startDaemon(marker, {
    component: "runtime",
    log: record.log,
    argv: [
      ...[process.execPath, main, "serve", "--config", join(home, "runtime.yaml")],
      ...["--socket", record.socket, "--root", record.root, "--state", record.state],
      ...flags,
    ],
  });
  await until(signal, 30_000, `the runtime (log: ${record.log})`, async () => {
    if (!(await runs()))
      throw new RuntimeError("unavailable", (await readFile(record.log, "utf8")).slice(-2000));
    return (await outcome(crictl(record, "version"))).code === 0;
  });
};

const runs = async (): Promise<boolean> =>
  (await clusterProcesses(marker)).some((each) => each.component === "runtime");

/** Ends the daemon, its pods, and all that is left of both. Tells whether there was any. */
export const runtimeDown = async (): Promise<boolean> => {
  const record = await runtimeRecord();
  if (record === undefined) return false;
  const deadline = AbortSignal.timeout(90_000);
  // One that crashed is the only one that knows what its pods hold: addresses, rules, cgroups.
  if (existsSync(join(record.state, "records")) && (await outcome(crictl(record, "version"))).code !== 0)
    await startRuntime(record, [], deadline).catch((error) =>
      process.stderr.write(`dev: what the runtime left is removed without it: ${messageOf(error)}\n`),
    );
  if (existsSync(record.socket))
    await outcome(crictl(record, "rmp", "--all", "--force"), { signal: deadline }).catch(() => {});
  const processes = await clusterProcesses(marker);
  await endProcesses(
    processes.filter((each) => each.component === "runtime"),
    5000,
  );
  await endProcesses(await clusterProcesses(marker), 0);
  for (const dir of [record.state, record.root, home]) await unmountBelow(dir);
  await outcome(["ip", "link", "del", bridge]);
  for (const dir of [record.state, record.root, inCache("runtime")])
    await rm(dir, { recursive: true, force: true });
  await rm(record.socket, { force: true });
  await rm(home, { recursive: true, force: true });
  // Other runtimes' containers and monitors keep them: rmdir refuses then.
  for (const path of ["bulkhead/monitors", "bulkhead"])
    for (const dir of await cgroupDirs(path)) await rmdir(dir).catch(() => {});
  return true;
};

/** crictl against the daemon. */
export const crictl = (record: RuntimeRecord, ...args: string[]): string[] => [
  tool("crictl"),
  // Without a configuration file it warns of having none.
  ...["--config", join(home, "crictl.yaml"), "--runtime-endpoint", `unix://${record.socket}`],
  ...args,
];

const configuration = {
  handlersDir: join(home, "handlers.d"),
  cni: { binDirs: [tool("cni")], confDir: join(home, "cni") },
  runtimes: [{ kind: "oci", name: "runc", binary: tool("runc") }],
  defaultHandler: "runc",
};

/** CNI network configuration list 1.0.0. */
const podNetwork = {
  cniVersion: "1.0.0",
  name: "dev-runtime",
  plugins: [
    {
      type: "bridge",
      bridge,
      isGateway: true,
      hairpinMode: true,
      ipMasq: false,
      ipam: {
        type: "host-local",
        dataDir: join(home, "ipam"),
        ranges: [[{ subnet: "10.79.0.0/24" }]],
        routes: [{ dst: "0.0.0.0/0" }],
      },
    },
    { type: "portmap", capabilities: { portMappings: true } },
  ],
};
