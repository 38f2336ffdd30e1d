import { existsSync } from "node:fs";
import { readdir, readFile, readlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { connectCri } from "@bulkhead/lib/cri/client.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Host } from "../installer/host.ts";
import { adapters } from "./adapters.ts";
import { type Engine, type EngineKind, type EngineRecord, flagOf } from "./engine.ts";

/** Finds out which engine really serves the kubelet: who listens on its socket, and what it answers. Reads only. */

const kindOf: Record<string, EngineKind> = { containerd: "containerd", "cri-o": "crio", docker: "docker" };
const programOf: Record<EngineKind, RegExp> = {
  containerd: /^containerd$/,
  crio: /^crio$/,
  docker: /^cri-dockerd$/,
};

const text = (path: string): Promise<string | undefined> => readFile(path, "utf8").catch(() => undefined);

/** The engine behind the kubelet's CRI socket; `record` names files that are ours. Throws failed-precondition where it cannot be told what it is. */
export async function findEngine(
  host: Host,
  socket: string,
  record: EngineRecord | undefined,
  signal: AbortSignal,
): Promise<Engine> {
  const refuse = (why: string): never => {
    throw new RuntimeError("failed-precondition", `Cannot configure the engine behind ${socket}: ${why}`);
  };
  using cri = connectCri(host.at(host.real(socket)));
  const answer = await cri.runtime
    .version({}, AbortSignal.any([signal, AbortSignal.timeout(10_000)]))
    .catch((error: unknown) => refuse(messageOf(error)));
  const kind = kindOf[answer.runtimeName];
  if (kind === undefined)
    return refuse(`it calls itself "${answer.runtimeName}"; expected ${Object.keys(kindOf).join(", ")}`);
  const server = await listener(host, socket);
  if (server === undefined) return refuse("no process of this host listens on it");
  const name = basename(server.argv[0] ?? "");
  if (!programOf[kind].test(name)) {
    return refuse(
      `it says that it is ${answer.runtimeName}, but process ${server.pid}, which listens on it, is "${name}"`,
    );
  }
  let daemon = server;
  if (kind === "docker") {
    const endpoint = flagOf(server.argv, "--docker-endpoint") ?? "unix:///var/run/docker.sock";
    daemon =
      (await listener(host, endpoint.replace(/^unix:\/\//, ""))) ?? refuse(`nobody listens on ${endpoint}`);
  }
  const unit = /\/([^/\n]+\.service)(?:\/|$)/m.exec((await text(`/proc/${daemon.pid}/cgroup`)) ?? "")?.[1];
  if (unit === undefined) return refuse(`process ${daemon.pid} belongs to no systemd service`);
  const shown = await host.run(["systemctl", "show", unit, "-p", "KillMode", "--value"], { signal });
  const program = programAt(
    (await readlink(`/proc/${daemon.pid}/exe`)).replace(/ \(deleted\)$/, ""),
    daemon.argv,
    (path) => existsSync(host.at(path)),
  );
  return {
    kind,
    version: answer.runtimeVersion,
    socket,
    pid: daemon.pid,
    argv: daemon.argv,
    program,
    unit,
    killMode: shown.stdout.trim(),
    startedAt: await startOf(daemon.pid),
    files: await readFiles(host, kind, daemon.argv, record),
  };
}

/**
 * The path to run a daemon's program by. k3s' one file is containerd by the name that it is started by: that of a link
 * beside it.
 */
export function programAt(exe: string, [started = ""]: string[], exists: (path: string) => boolean): string {
  const link = join(dirname(exe), basename(started));
  return basename(exe) !== basename(started) && exists(link) ? link : exe;
}

/** conmon's processes in the cgroup of a unit: a restart of it that ends all that is in there ends their containers. */
export async function monitorsIn(unit: string): Promise<number> {
  let found = 0;
  for (const pid of await readdir("/proc")) {
    if (!/^[0-9]+$/.test(pid) || !/^conmon/.test((await text(`/proc/${pid}/comm`)) ?? "")) continue;
    const groups = (await text(`/proc/${pid}/cgroup`)) ?? "";
    if (groups.split("\n").some((line) => line.split("/").includes(unit))) found++;
  }
  return found;
}

/** The process that has the host's socket open as its listener; systemd, which may hold it too, does not count. */
async function listener(host: Host, socket: string): Promise<{ pid: number; argv: string[] } | undefined> {
  const real = host.real(socket);
  const listening = (await text("/proc/1/net/unix"))?.split("\n").flatMap((line) => {
    const fields = line.trim().split(/\s+/);
    // Flag __SO_ACCEPTCON: it listens.
    const [flags, path = ""] = [fields[3], fields[7]];
    return flags === "00010000" && path.startsWith("/")
      ? [{ inode: `socket:[${fields[6]}]`, path: host.real(path) }]
      : [];
  });
  const exact = (listening ?? []).filter(({ path }) => path === real);
  if (exact.length > 0) return await holder(exact, () => true);
  // cri-dockerd binds a name beside its socket's and renames that; the kernel's table keeps the first.
  const beside = (listening ?? []).filter(
    ({ path }) => dirname(path) === dirname(real) && !existsSync(host.at(path)),
  );
  return await holder(beside, (argv) => {
    const endpoint = flagOf(argv, "--container-runtime-endpoint") ?? "unix:///var/run/cri-dockerd.sock";
    return (
      programOf.docker.test(basename(argv[0] ?? "")) && host.real(endpoint.replace(/^unix:\/\//, "")) === real
    );
  });
}

/** The process that holds one of these sockets, and whose command line is such. */
async function holder(
  sockets: { inode: string }[],
  is: (argv: string[]) => boolean,
): Promise<{ pid: number; argv: string[] } | undefined> {
  const inodes = new Set(sockets.map(({ inode }) => inode));
  if (inodes.size === 0) return undefined;
  const pids = (await readdir("/proc")).filter((name) => /^[0-9]+$/.test(name) && name !== "1");
  const likely = async (pid: string): Promise<boolean> =>
    /^(containerd|crio|cri-dockerd|dockerd)/.test((await text(`/proc/${pid}/comm`)) ?? "");
  // A look at every descriptor of a busy node takes long: those first whose name it should be.
  const first = await Promise.all(pids.map(likely));
  for (const name of [...pids.filter((_, i) => first[i]), ...pids.filter((_, i) => !first[i])]) {
    const fds = await readdir(`/proc/${name}/fd`).catch(() => []);
    for (const fd of fds) {
      if (!inodes.has(await readlink(`/proc/${name}/fd/${fd}`).catch(() => ""))) continue;
      const argv = ((await text(`/proc/${name}/cmdline`)) ?? "").replace(/\0$/, "").split("\0");
      if (is(argv)) return { pid: Number(name), argv };
    }
  }
  return undefined;
}

/** When a process was started, in milliseconds of Date.now(). */
async function startOf(pid: number): Promise<number> {
  const stat = (await text(`/proc/${pid}/stat`)) ?? "";
  // proc_pid_stat(5): field 22, in ticks of 1/100 s since boot; the second field may hold anything up to the last ).
  const ticks = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? 0);
  const uptime = Number(((await text("/proc/uptime")) ?? "0").split(" ")[0]);
  return Date.now() - (uptime - ticks / 100) * 1000;
}

/** Reads the files of an engine that was started with `argv`, and those that hold something of ours. */
export async function readFiles(
  host: Host,
  kind: EngineKind,
  argv: string[],
  record: EngineRecord | undefined,
): Promise<Map<string, string>> {
  const files = new Map<string, string>();
  const seen = new Set<string>();
  const take = async (path: string): Promise<void> => {
    if (seen.has(path)) return;
    seen.add(path);
    if (path.endsWith("/*")) {
      const names = await readdir(host.at(host.real(dirname(path)))).catch(() => []);
      for (const name of names.filter((each) => /\.(toml|conf)$/.test(each)).sort())
        await take(join(dirname(path), name));
      return;
    }
    const body = await text(host.at(host.real(path)));
    if (body !== undefined) files.set(path, body);
  };
  const { reads, more } = adapters[kind];
  const ours = [...(record?.own ?? []), ...(record?.edited ?? []).map(({ path }) => path)];
  for (const path of [...reads(argv), ...ours]) await take(path);
  // Imports of imports: bounded, for they may name each other.
  for (let depth = 0; depth < 8; depth++) {
    const before = seen.size;
    for (const path of more(argv, files)) await take(path);
    if (seen.size === before) break;
  }
  return files;
}
