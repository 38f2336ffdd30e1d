import { existsSync } from "node:fs";
import { readdir, readFile, readlink, rm, rmdir } from "node:fs/promises";
import { basename, join } from "node:path";
import { outcome, run } from "../tools/run.ts";
import type { Node } from "./node.ts";

type Where = Pick<Node, "name" | "disk" | "run" | "state" | "root" | "addresses" | "cgroup" | "pid">;

/** What a node has, by kind; all of it must be as before when the pods are gone. */
export type Traces = Record<string, string[]>;

export type Process = { pid: number; argv: string[]; cwd: string; parent: number; state: string };

/** Processes that the daemon or its pods run: what names our directories, runs in them, or is in our cgroup. */
export const processesOf = async (node: Where): Promise<Process[]> => {
  const found: Process[] = [];
  const daemon = node.pid();
  for (const entry of await readdir("/proc")) {
    const pid = Number(entry);
    if (!Number.isInteger(pid) || pid === process.pid || pid === daemon) continue;
    const read = (name: string): Promise<string> => readFile(`/proc/${pid}/${name}`, "utf8").catch(() => "");
    const [command, stat, cgroup, cwd] = await Promise.all([
      read("cmdline"),
      read("stat"),
      read("cgroup"),
      readlink(`/proc/${pid}/cwd`).catch(() => ""),
    ]);
    const [state = "", parent = ""] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const ours =
      [node.disk, node.run].some((dir) => command.includes(dir) || cwd.startsWith(dir)) ||
      cgroup.includes(`/${node.cgroup}/`) ||
      (daemon !== undefined && Number(parent) === daemon);
    // What this very program starts (ip, iptables-save) is not meant.
    if (!ours || Number(parent) === process.pid) continue;
    found.push({ pid, argv: command.split("\0"), cwd, parent: Number(parent), state });
  }
  return found;
};

const below = async (dir: string): Promise<string[]> => {
  const names = await readdir(dir, { recursive: true }).catch(() => []);
  return names.filter((name) => !/last_reserved_ip|(^|\/)lock$/.test(name));
};

/** The kinds of what a process has open, each with its number. Regular files stand by their path. */
const descriptorsOf = async (pid: number): Promise<string[]> => {
  const counts = new Map<string, number>();
  for (const fd of await readdir(`/proc/${pid}/fd`).catch(() => [])) {
    const target = await readlink(`/proc/${pid}/fd/${fd}`).catch(() => "");
    if (target === "") continue;
    const kind = target.replace(/:\[\d+\]$/, "").replace(/[0-9a-f]{64}|-\d+( \(deleted\))?$/g, "ID");
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
  }
  return [...counts].map(([kind, count]) => `${kind} ×${count}`);
};

/** Cgroups below ours in every hierarchy. */
const cgroupsOf = async (name: string): Promise<string[]> => {
  const trees = ["", ...(await readdir("/sys/fs/cgroup"))].map((tree) => join("/sys/fs/cgroup", tree));
  const found: string[] = [];
  for (const tree of trees) {
    const top = join(tree, name);
    if (!existsSync(top)) continue;
    for (const entry of await readdir(top, { recursive: true, withFileTypes: true }))
      if (entry.isDirectory()) found.push(join(entry.parentPath, entry.name));
  }
  return found;
};

/** Removes the pods' own cgroups, as kubelet does. What a container left in one keeps it. */
export const removePodCgroups = async (node: Where): Promise<void> => {
  for (const dir of await cgroupsOf(node.cgroup))
    if (basename(join(dir, "..")) === node.cgroup) await rmdir(dir).catch(() => {});
};

const mountsBelow = async (node: Where): Promise<string[]> => {
  const table = await readFile("/proc/self/mountinfo", "utf8");
  const points = table.split("\n").flatMap((line) => line.split(" ")[4] ?? []);
  return points.filter((point) => [node.disk, node.run].some((dir) => point.startsWith(`${dir}/`)));
};

const linksOf = async (bridge: string): Promise<string[]> => {
  const { stdout } = await outcome(["ip", "-o", "link", "show", "master", bridge]);
  return stdout
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.split(":")[1]?.trim() ?? "");
};

/** Rules that carry the network's name, as CNI's own plugins mark theirs, and the chains that they lead to. */
const rulesOf = async (name: string): Promise<string[]> => {
  const { stdout } = await outcome(["iptables-save"]);
  const rules = stdout.split("\n").filter((line) => line.startsWith("-A") && line.includes(`"${name}\\"`));
  return rules;
};

/** All that a node has now. */
export const tracesOf = async (node: Where): Promise<Traces> => {
  const state = join(node.state, "state");
  const layers = join(node.root, "snapshots");
  const shallow = async (dir: string): Promise<string[]> => await readdir(join(layers, dir)).catch(() => []);
  const daemon = node.pid();
  const traces: Traces = {
    mounts: await mountsBelow(node),
    "state files": await below(state),
    "image files": await below(join(node.root, "images")),
    attachments: await below(join(node.root, "attachments")),
    snapshots: (
      await Promise.all(
        ["layers", "containers", "staging", "trash"].map(async (dir) =>
          (await shallow(dir)).map((name) => `${dir}/${name}`),
        ),
      )
    ).flat(),
    layers: [`${(await shallow("l")).length} directories`],
    addresses: await below(node.addresses),
    // One line for a cgroup, whatever the number of hierarchies that have it.
    cgroups: [
      ...new Set((await cgroupsOf(node.cgroup)).map((dir) => dir.slice(dir.indexOf(`/${node.cgroup}/`)))),
    ],
    processes: (await processesOf(node)).map(
      ({ argv, state: how, pid }) => `${argv.slice(0, 12).join(" ").slice(0, 400) || "?"} (${how}, ${pid})`,
    ),
    interfaces: await linksOf(node.name),
    rules: await rulesOf(node.name),
    descriptors: daemon === undefined ? [] : await descriptorsOf(daemon),
  };
  for (const list of Object.values(traces)) list.sort();
  return traces;
};

/** What is there now and was not before, or the other way round; fewer descriptors than before are no loss. */
export const difference = (before: Traces, now: Traces): string[] => {
  const problems: string[] = [];
  for (const kind of Object.keys(now)) {
    if (kind === "descriptors") {
      const count = (text: string): [string, number] => {
        const at = text.lastIndexOf(" ×");
        return [text.slice(0, at), Number(text.slice(at + 2))];
      };
      const known = new Map(before[kind]?.map(count));
      for (const [what, number] of now[kind]?.map(count) ?? [])
        if (number > (known.get(what) ?? 0))
          problems.push(`descriptors: ${number} of ${what} instead of ${known.get(what) ?? 0}`);
      continue;
    }
    const had = new Set(before[kind]);
    const has = new Set(now[kind]);
    for (const each of has) if (!had.has(each)) problems.push(`${kind}: ${each} is left`);
    for (const each of had) if (!has.has(each)) problems.push(`${kind}: ${each} is gone`);
  }
  return problems;
};

/** Ends and removes by force whatever a node left, for the machine's sake. */
export const removeTraces = async (node: Where): Promise<void> => {
  for (let pass = 0; pass < 5; pass++) {
    const left = (await processesOf(node)).filter(({ state }) => state !== "Z");
    if (left.length === 0) break;
    for (const { pid } of left) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // It has ended.
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  const own = new Set([node.state, node.root]);
  for (const point of (await mountsBelow(node)).reverse())
    if (!own.has(point)) await outcome(["umount", "-l", point]);
  for (const table of ["nat", "filter"]) {
    const { stdout } = await outcome(["iptables-save", "-t", table]);
    for (const rule of stdout.split("\n").filter((line) => line.includes(`"${node.name}\\"`)))
      await run(["sh", "-c", `iptables -t ${table} ${rule.replace(/^-A/, "-D")}`]).catch(() => "");
  }
  await outcome(["ip", "link", "del", node.name]);
  for (const dir of (await cgroupsOf(node.cgroup)).sort().reverse()) await rmdir(dir).catch(() => {});
  for (const tree of await readdir("/sys/fs/cgroup"))
    await rmdir(join("/sys/fs/cgroup", tree, node.cgroup)).catch(() => {});
  for (const name of await readdir(node.addresses).catch(() => []))
    await rm(join(node.addresses, basename(name)), { recursive: true, force: true });
};
