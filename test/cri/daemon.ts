import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, openSync } from "node:fs";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { canaryImage } from "@bulkhead/lib/api/group.ts";
import { tool } from "../tools/cache.ts";
import { type Outcome, outcome, run } from "../tools/run.ts";
import { gvisorHandler } from "./handlers.ts";

const main = join(import.meta.dirname, "../../runtime/src/main.ts");

/** A bulkhead-runtime of its own: socket, state, images, network. Nothing of it touches another one's. */
export type Daemon = AsyncDisposable & {
  socket: string;
  state: string;
  /** Images, and what containers write. */
  root: string;
  handlersDir: string;
  /** CNI network configuration, read live. */
  confDir: string;
  /** Programs here are CNI plugins too. */
  pluginDir: string;
  /** Addresses in use are files below this directory, as host-local keeps them. */
  addressDir: string;
  /** Name of the pod network, which every iptables rule of a pod carries in its comment. */
  network: string;
  logFile: string;
  start(): Promise<void>;
  /** Ends it by this signal, as systemd or the kernel would. */
  end(signal: "SIGTERM" | "SIGKILL"): Promise<void>;
  /** crictl against it; throws when it fails. */
  crictl(...args: string[]): Promise<string>;
  /** The same, for calls that are meant to fail. */
  tryCrictl(...args: string[]): Promise<Outcome>;
};

/**
 * `registry` is HOST:PORT; it stands in for registry.k8s.io and gcr.io. `subnet` is the second byte of 10.N.0.0/16.
 * `under` is a command line that ends by becoming the program that is added to it. `seconds` is how long the daemon may
 * take until it answers, and crictl for a call: a virtual machine takes longer to go than crictl waits by default.
 */
export const createDaemon = async (options: {
  registry: string;
  subnet: number;
  under?: readonly string[];
  seconds?: number;
}): Promise<Daemon> => {
  const disk = await mkdtemp(join(tmpdir(), "bh-cri-"));
  const state = await mkdtemp("/run/bh-cri-");
  // As /run/bulkhead is: user namespaces need a way through.
  await chmod(state, 0o711);
  const bridge = `bhcri${options.subnet}`;
  // No two daemons' ever: rules that an earlier one left are not this one's.
  const network = basename(state);
  const root = join(disk, "root");
  const handlersDir = join(disk, "handlers.d");
  const confDir = join(disk, "net.d");
  const socket = join(state, "cri.sock");
  const logFile = join(disk, "log");
  const pluginDir = join(disk, "cni");
  for (const dir of [handlersDir, confDir, pluginDir]) await mkdir(dir);
  await writeFile(
    join(handlersDir, "gvisor.yaml"),
    JSON.stringify(await gvisorHandler(disk, join(state, "runsc"))),
  );
  await writeFile(
    join(confDir, "10.conflist"),
    JSON.stringify({
      cniVersion: "1.0.0",
      name: network,
      plugins: [
        {
          type: "bridge",
          bridge,
          isGateway: true,
          ipMasq: true,
          hairpinMode: true,
          ipam: {
            type: "host-local",
            dataDir: join(state, "ipam"),
            ranges: [[{ subnet: `10.${options.subnet}.0.0/16` }]],
            routes: [{ dst: "0.0.0.0/0" }],
          },
        },
        { type: "portmap", capabilities: { portMappings: true } },
      ],
    }),
  );
  const mirror = [`http://${options.registry}`];
  const config = join(disk, "runtime.yaml");
  // JSON is YAML.
  await writeFile(
    config,
    JSON.stringify({
      socket,
      root,
      state: join(state, "state"),
      handlersDir,
      cni: { binDirs: [tool("cni"), pluginDir], confDir },
      registries: {
        mirrors: Object.fromEntries(
          ["registry.k8s.io", "gcr.io", "k8s.gcr.io", dirname(canaryImage)].map((host) => [host, mirror]),
        ),
      },
      runtimes: [{ name: "runc", kind: "oci", binary: tool("runc") }],
    }),
  );
  let child: ChildProcess | undefined;
  const argv = (args: string[]): string[] => [
    tool("crictl"),
    ...["--runtime-endpoint", `unix://${socket}`, "--image-endpoint", `unix://${socket}`],
    // Its own two seconds are less than a busy machine takes to end a gVisor pod.
    ...["--timeout", `${options.seconds ?? 60}s`],
    ...args,
  ];
  const tryCrictl = (...args: string[]): Promise<Outcome> => outcome(argv(args));
  const daemon: Daemon = {
    socket,
    state: join(state, "state"),
    root,
    handlersDir,
    confDir,
    pluginDir,
    addressDir: join(state, "ipam", network),
    network,
    logFile,
    tryCrictl,
    crictl: (...args) => run(argv(args)),
    async start() {
      const log = openSync(logFile, "a");
      const [program = "", ...args] = [
        ...(options.under ?? []),
        ...[process.execPath, main, "serve", "--config", config],
      ];
      const started = spawn(program, args, {
        stdio: ["ignore", log, log],
      });
      child = started;
      const deadline = Date.now() + (options.seconds ?? 30) * 1000;
      for (; (await tryCrictl("version")).code !== 0; await sleep(100))
        if (started.exitCode !== null || Date.now() > deadline)
          throw new Error(`Cannot start bulkhead-runtime:\n${await readFile(logFile, "utf8")}`);
    },
    async end(signal) {
      if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
      const ended = once(child, "exit");
      child.kill(signal);
      await ended;
    },
    async [Symbol.asyncDispose]() {
      try {
        if (child?.exitCode !== null || child.signalCode !== null) await daemon.start();
        const ids = (await run(argv(["pods", "-q"]))).split("\n").filter((id) => id !== "");
        if (ids.length > 0) await run(argv(["rmp", "-f", ...ids]));
      } finally {
        await daemon.end("SIGTERM");
        await outcome(["ip", "link", "del", bridge]);
        await unmountBelow(state);
        await rm(state, { recursive: true, force: true });
        await unmountBelow(disk);
        await rm(disk, { recursive: true, force: true });
      }
    },
  };
  return daemon;
};

/** Mounts that a runtime keeps for as long as the machine runs, such as runsc's empty network namespace. */
const unmountBelow = async (dir: string): Promise<void> => {
  const table = await readFile("/proc/self/mountinfo", "utf8");
  const points = table.split("\n").flatMap((line) => line.split(" ")[4] ?? []);
  for (const point of points.filter((each) => each.startsWith(`${dir}/`)).reverse())
    await outcome(["umount", "-l", point]);
};

/** iptables rules that plugins made for pods of this network and did not take away. */
const rulesOf = async (network: string): Promise<string[]> => {
  // Unlike iptables, iptables-save shows every table.
  const tables = await Promise.all([run(["iptables-save"]), run(["ip6tables-save"])]);
  return tables.flatMap((table) => table.split("\n")).filter((rule) => rule.includes(`\\"${network}\\"`));
};

/** Names of the remains of pods and containers, and their iptables rules, which must be none when all pods are gone. */
export const remains = async (daemon: Daemon): Promise<string[]> => {
  const mounts = (await readFile("/proc/self/mountinfo", "utf8"))
    .split("\n")
    .flatMap((line) => line.split(" ")[4] ?? [])
    .filter(
      (point) => point.startsWith(`${daemon.state}/pods`) || point.startsWith(`${daemon.state}/containers`),
    );
  const files = await Promise.all(
    ["pods", "containers", "records/pods", "records/containers"].map(async (dir) =>
      existsSync(join(daemon.state, dir)) ? await readdir(join(daemon.state, dir)) : [],
    ),
  );
  return [...mounts.map((point) => basename(point)), ...files.flat(), ...(await rulesOf(daemon.network))];
};
