import { readdir, readFile, readlink, statfs } from "node:fs/promises";
import type { Sample } from "./metric-catalog.ts";
import type { Interface } from "./net-dev.ts";

/** What the kernel says of one process; one that went meanwhile has no threads. */
type Process = { threads: number; files: number; sockets: number };

/** The figures of a container's processes: how many they are, their threads, open files and sockets (proc(5)). */
export const processSamples = async (pids: readonly number[]): Promise<Sample[]> => {
  const all: Process[] = [];
  // One after the other: a container may have thousands, and the daemon's own descriptors are few.
  for (const pid of pids) all.push(await processOf(pid));
  const alive = all.filter(({ threads }) => threads > 0);
  const sum = (of: (process: Process) => number): bigint =>
    BigInt(alive.reduce((total, each) => total + of(each), 0));
  return [
    { name: "container_processes", value: BigInt(alive.length) },
    { name: "container_threads", value: sum(({ threads }) => threads) },
    { name: "container_file_descriptors", value: sum(({ files }) => files) },
    { name: "container_sockets", value: sum(({ sockets }) => sockets) },
  ];
};

const processOf = async (pid: number): Promise<Process> => {
  const [status, fds] = await Promise.all([
    readFile(`/proc/${pid}/status`, "latin1").catch(() => ""),
    readdir(`/proc/${pid}/fd`).catch(() => []),
  ]);
  const targets = await Promise.all(fds.map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => "")));
  return {
    threads: Number(/^Threads:\s*(\d+)$/m.exec(status)?.[1] ?? 0),
    files: fds.length,
    sockets: targets.filter((target) => target.startsWith("socket:")).length,
  };
};

/** cAdvisor tells this one of /proc/PID/limits; unlimited, -1 there, cannot be said in CRI and is left out. */
export const ulimitSamples = (limits: string): Sample[] => {
  const [, soft] = /^Max open files\s+(\d+)\s/m.exec(limits) ?? [];
  return soft === undefined
    ? []
    : [{ name: "container_ulimits_soft", labels: ["max_open_files"], value: BigInt(soft) }];
};

/** The same of a container's first process. */
export const readUlimits = async (pid: number): Promise<Sample[]> =>
  ulimitSamples(await readFile(`/proc/${pid}/limits`, "latin1").catch(() => ""));

/** The filesystem that writable layers lie on: all containers share it. */
export const readDisk = async (path: string): Promise<Sample[]> => {
  const disk = await statfs(path, { bigint: true }).catch(() => undefined);
  if (disk === undefined) return [];
  return [
    { name: "container_fs_limit_bytes", labels: [""], value: disk.blocks * disk.bsize },
    { name: "container_fs_inodes_total", labels: [""], value: disk.files },
    { name: "container_fs_inodes_free", labels: [""], value: disk.ffree },
  ];
};

/** The figures of a pod's interfaces. */
export const networkSamples = (interfaces: readonly Interface[]): Sample[] =>
  interfaces.flatMap((each): Sample[] => {
    const labels = [each.name];
    return [
      { name: "container_network_receive_bytes_total", labels, value: each.rxBytes },
      { name: "container_network_receive_packets_total", labels, value: each.rxPackets },
      { name: "container_network_receive_errors_total", labels, value: each.rxErrors },
      { name: "container_network_receive_packets_dropped_total", labels, value: each.rxDropped },
      { name: "container_network_transmit_bytes_total", labels, value: each.txBytes },
      { name: "container_network_transmit_packets_total", labels, value: each.txPackets },
      { name: "container_network_transmit_errors_total", labels, value: each.txErrors },
      { name: "container_network_transmit_packets_dropped_total", labels, value: each.txDropped },
    ];
  });
