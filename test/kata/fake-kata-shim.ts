import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import {
  appendFileSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { createServer } from "node:http";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { OptionsSchema } from "@bulkhead/lib/gen/shim_runtime_options_pb.js";
import { DeleteResponseSchema, Task } from "@bulkhead/lib/gen/shim_task_v2_pb.js";
import { Status } from "@bulkhead/lib/gen/shim_types_v1_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { serveTtrpc } from "@bulkhead/lib/ttrpc/server.ts";

/**
 * A fake of Kata's shim (runtime-rs): it boots nothing and walls nothing off. It keeps to what the real one is particular
 * about, and refuses what the real one would: the address as plain text, task.v2 alone, one code for every failure, no
 * task before the sandbox's Create, the configuration by ConfigPath, root file systems in the forms that it knows, its
 * own pid for everything. Its machine outlives it when it is killed, in the sandbox's cgroup, and its `delete` leaves it. As
 * the Go shim does, it refuses Delete for a moment after it told of an end, and leaves its directories below /run. A disk
 * that is a file it puts into one of five drives as for Firecracker, by mounts in a namespace of its own that the machine
 * sees through a third one; given up, the drive is the next one's, and its mount stays. What it is asked goes to
 * FAKE_KATA_LOG, a line of JSON each.
 */

const args = process.argv.slice(2);
const id = args[args.indexOf("-id") + 1] ?? "";
const address = join(process.cwd(), "fake-kata.sock");

const fail = (message: string): never => {
  throw new RuntimeError("unknown", `failed to handle message ${message}`);
};
const note = (what: object): void =>
  appendFileSync(process.env.FAKE_KATA_LOG ?? "", `${JSON.stringify(what)}\n`);

const start = async (): Promise<void> => {
  const [node = "", script = ""] = process.argv;
  const server = [node, script, ...args.filter((arg) => arg !== "start"), "serve"];
  const own = ["--mount", "--propagation", "slave", "sh", "-c", 'mount --make-rshared / && exec "$@"', "-"];
  spawn("unshare", [...own, ...server], { detached: true, stdio: "ignore" }).unref();
  while (!existsSync(address)) await sleep(5);
  process.stdout.write(`unix://${address}`);
};

type Container = {
  bundle: string;
  stdout: string;
  /** Its end of the pipe, while it runs. */
  output?: number | undefined;
  status: Status;
  ended: PromiseWithResolvers<number>;
  /** When it is stopped in the guest too. */
  deletable: number;
  drive: number | undefined;
};
const containers = new Map<string, Container>();
let sandbox: string | undefined;
let machine: ChildProcess | undefined;

const containerOf = (name: string): Container =>
  containers.get(name) ??
  fail(sandbox === undefined ? "runtime not ready" : `failed to find container ${name}`);

/** Kata's dispatch of root file systems (rootfs/mod.rs): which form it is. */
const rootfsOf = (mounts: { type: string; source: string; options: string[] }[]): string => {
  const [mount] = mounts;
  if (mount === undefined || mounts.length > 1)
    return fail(`unsupported rootfs mounts count ${mounts.length}`);
  const found = statSync(mount.source);
  if (found.isBlockDevice()) return "block device";
  if (found.isFile() && mount.options.includes("loop")) return "block file";
  return found.isDirectory() && mount.type === "bind" ? "shared" : fail(`unsupported rootfs ${mount.source}`);
};

type Create = { id: string; bundle: string; rootfs: Parameters<typeof rootfsOf>[0]; stdout: string } & {
  options?: { typeUrl: string; value: Uint8Array } | undefined;
};

const jail = `/run/kata/firecracker/${id}/root`;
const drives = new Set<number>();

/** What shim and machine see of each other's mounts, as the jailer makes it. */
const prepareDrives = (): void => {
  mkdirSync(jail, { recursive: true });
  execFileSync("mount", ["--bind", jail, jail]);
  execFileSync("mount", ["--make-shared", jail]);
  for (let drive = 1; drive <= 5; drive++) writeFileSync(join(jail, `drive${drive}`), "");
};

/** The disk in the first drive that is free; the machine must see it there. */
const plug = (disk: string): number => {
  const drive = [1, 2, 3, 4, 5].find((each) => !drives.has(each)) ?? fail("no drive is left");
  const place = join(jail, `drive${drive}`);
  try {
    execFileSync("mount", ["--bind", disk, place], { stdio: "pipe" });
    execFileSync("mount", ["--make-slave", place]);
  } catch (error) {
    fail(`bind_mount ERROR: ${error}`);
  }
  if (machine && statSync(`/proc/${machine.pid}/root${place}`).ino !== statSync(disk).ino)
    fail(`failed to mount /dev/vd${"abcdef"[drive]}: EIO`);
  drives.add(drive);
  return drive;
};

const createTask = (request: Create): void => {
  const spec = JSON.parse(readFileSync(join(request.bundle, "config.json"), "utf8"));
  const annotations: Record<string, string> = spec.annotations ?? {};
  const type = annotations["io.kubernetes.cri.container-type"];
  const options = request.options && fromBinary(OptionsSchema, request.options.value);
  if (options && !existsSync(options.configPath)) fail(`load config ${options.configPath}`);
  const rootfs = rootfsOf(request.rootfs);
  note({
    create: request.id,
    type,
    rootfs,
    root: spec.root.path,
    devices: spec.linux?.devices ?? [],
    memory: spec.linux?.resources?.memory,
    annotations,
    options: {
      any: request.options?.typeUrl,
      type: options?.typeUrl,
      config: options?.configPath,
    },
  });
  if (type === "sandbox" && sandbox === undefined) {
    sandbox = request.id;
    if (rootfs === "block file") prepareDrives();
    startMachine(spec.linux?.cgroupsPath ?? "");
    leaveDirectories();
    serveMetrics();
  } else if (type !== "container" || annotations["io.kubernetes.cri.sandbox-id"] !== sandbox)
    fail(`container ${request.id} of type ${type} before its sandbox`);
  const drive = rootfs === "block file" ? plug(request.rootfs[0]?.source ?? "") : undefined;
  if (annotations.refuse !== undefined) {
    drives.delete(drive ?? 0);
    fail(`agent create container: ${annotations.refuse}`);
  }
  const { bundle, stdout } = request;
  containers.set(request.id, {
    drive,
    bundle,
    stdout,
    status: Status.CREATED,
    ended: Promise.withResolvers(),
    deletable: 0,
  });
};

/** A process that stands for the hypervisor's: it is where the sandbox's processes are counted. */
const startMachine = (cgroupsPath: string): void => {
  const [, , name] = cgroupsPath.split(":");
  // A scope is systemd's to make; the fake asks it for none.
  if (name !== undefined) return;
  const cgroup = join(
    existsSync("/sys/fs/cgroup/pids") ? "/sys/fs/cgroup/pids" : "/sys/fs/cgroup",
    cgroupsPath,
  );
  mkdirSync(cgroup, { recursive: true });
  const jailed = ["--mount", "--propagation", "slave", "bash", "-c", `exec -a machine-of-${id} sleep 1000`];
  machine = spawn("unshare", jailed, { detached: true, stdio: "ignore" });
  writeFileSync(join(cgroup, "cgroup.procs"), String(machine.pid));
  machine.unref();
  while (!readFileSync(`/proc/${machine.pid}/cmdline`, "utf8").startsWith("machine-of-"))
    execFileSync("sleep", ["0.01"]);
};

/** Where the real ones keep what is a sandbox's; the older one ends before it comes to removing it. */
const leaveDirectories = (): void => {
  for (const path of [`/run/vc/sbs/${id}`, `/run/kata-containers/shared/sandboxes/${id}/mounts/${id}/rootfs`])
    mkdirSync(path, { recursive: true });
  writeFileSync(`/run/vc/sbs/${id}/persist.json`, "{}");
};

/** As the real one: below a directory of the sandbox's id. */
const serveMetrics = (): void => {
  const socket = join(process.env.FAKE_KATA_RUN ?? "", id, "shim-monitor.sock");
  mkdirSync(dirname(socket), { recursive: true });
  createServer((request, response) => {
    if (request.url !== "/metrics") response.statusCode = 404;
    response.end(`# TYPE kata_shim_threads gauge\nkata_shim_threads 7\nkata_guest_load{item="load1"} 0.5\n`);
  }).listen(socket);
};

const serve = async (): Promise<void> => {
  // Where it is looked for it stands when it listens and knows its service.
  const server = await serveTtrpc(`${address}.new`);
  const pid = { pid: process.pid };
  const ended = async (name: string) => ({
    exitStatus: await containerOf(name).ended.promise,
    exitedAt: timestampNow(),
  });
  const unused = async () => fail("the fake does not do that");
  server.add(Task, {
    connect: async (request) => {
      containerOf(request.id);
      return { shimPid: process.pid, taskPid: process.pid, version: "2" };
    },
    create: async (request) => {
      createTask(request);
      return pid;
    },
    start: async (request) => {
      const container = containerOf(request.id);
      container.status = Status.RUNNING;
      if (container.stdout !== "") {
        container.output = openSync(container.stdout, "r+");
        writeSync(container.output, `from ${request.id}\n`);
      }
      return pid;
    },
    wait: (request) => ended(request.id),
    state: async (request) => ({ id: request.id, ...pid, status: containerOf(request.id).status }),
    kill: async (request) => {
      const container = containerOf(request.id);
      container.status = Status.STOPPED;
      if (container.output !== undefined) closeSync(container.output);
      container.output = undefined;
      container.deletable = Date.now() + 300;
      container.ended.resolve(128 + request.signal);
      return {};
    },
    delete: async (request) => {
      const { ended: end, deletable, drive } = containerOf(request.id);
      const exitStatus = await end.promise;
      if (Date.now() < deletable) fail("Container not ready or stopped, impossible to delete");
      containers.delete(request.id);
      drives.delete(drive ?? 0);
      note({ delete: request.id });
      return { ...pid, exitStatus, exitedAt: timestampNow() };
    },
    shutdown: async (request) => {
      note({ shutdown: request.id });
      machine?.kill("SIGKILL");
      setTimeout(() => process.exit(0), 20);
      return {};
    },
    pids: unused,
    pause: unused,
    resume: unused,
    checkpoint: unused,
    exec: unused,
    resizePty: unused,
    closeIO: unused,
    update: unused,
    stats: async () => ({}),
  });
  renameSync(`${address}.new`, address);
};

if (args.includes("start")) await start();
else if (args.includes("delete"))
  process.stdout.write(toBinary(DeleteResponseSchema, create(DeleteResponseSchema, { exitStatus: 137 })));
else await serve();
