import { access, lstat, readdir, readFile, readlink } from "node:fs/promises";
import { join } from "node:path";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { type View, View as ViewSchema } from "../probe/wall.ts";
import type { BundleCheck, Manifest } from "./bundle.ts";
import { installed, versionDirectory } from "./files.ts";
import type { Host } from "./host.ts";
import { vmFacts } from "./kata/facts.ts";
import type { VmFacts } from "./kata/node.ts";
import {
  holderOf,
  k3sKubelet,
  kubeliteArgs,
  kubeliteArgsFile,
  type RunningKubelet,
} from "./kubelet/holder.ts";
import { byWalk, findSetting, type KubeletView, type TextFile } from "./kubelet/setting.ts";
import { type Ownership, sha256 } from "./ownership.ts";
import type { Facts } from "./plan.ts";

/** What the node is. Reads only. */

export type HostFacts = {
  kernel: string;
  arch: string;
  cgroup: "v1" | "v2";
  vm: VmFacts;
  view: View;
};

const read = (path: string): Promise<string | undefined> => readFile(path, "utf8").catch(() => undefined);

/**
 * What holds until the next boot. `/proc` is the host's own: the installer shares its process ids (hostPID).
 * `kvmProbe`: path of bulkhead-kvm-probe.
 */
export async function hostFacts(host: Host, kvmProbe: string): Promise<HostFacts> {
  const namespaces = Object.fromEntries(
    await Promise.all(
      ["pid", "mnt", "net", "ipc", "uts"].map(
        async (kind) => [kind, await readlink(`/proc/1/ns/${kind}`).catch(() => "")] as const,
      ),
    ),
  );
  const release = ((await read("/proc/sys/kernel/osrelease")) ?? "").trim();
  const vm = await vmFacts(host, kvmProbe);
  const v2 = await access(host.at("/sys/fs/cgroup/cgroup.controllers")).then(
    () => true,
    () => false,
  );
  return {
    kernel: release,
    arch: { x64: "amd64", arm64: "arm64" }[process.arch as string] ?? process.arch,
    cgroup: v2 ? "v2" : "v1",
    vm,
    view: ViewSchema.parse({
      version: ((await read("/proc/version")) ?? "").trim(),
      release,
      bootId: ((await read("/proc/sys/kernel/random/boot_id")) ?? "").trim(),
      cmdline: ((await read("/proc/cmdline")) ?? "").trim(),
      namespaces,
    }),
  };
}

/** The node as a plan needs it. `managed`: paths that a plan may write. */
export async function gatherFacts(
  host: Host,
  ownership: Ownership,
  bundle: { manifest: Manifest; check: BundleCheck },
  managed: Iterable<string>,
  signal: AbortSignal,
): Promise<Facts> {
  const { manifest, check } = bundle;
  const target = await readlink(host.at(installed.current)).catch(() => undefined);
  const hasUnit = ownership.record.entries.some(({ path }) => path === installed.unit);
  const own = ownership.record.entries.filter((entry) => entry.kind === "file").map((entry) => entry.path);
  const files = new Map<string, string>();
  for (const path of new Set([...managed, ...own, paths.config, installed.unit])) {
    const text = await read(host.at(path));
    if (text !== undefined) files.set(path, text);
  }
  const active = await host.run(["systemctl", "is-active", paths.unit], { signal });
  const unitActive = active.stdout.trim() === "active";
  const edited = ownership.record.entries.flatMap((entry) => {
    const text = files.get(entry.path);
    const same = entry.kind !== "file" || (text !== undefined && sha256(text) === entry.sha256);
    return same ? [] : [entry.path];
  });
  return {
    record: ownership.record,
    // Without its unit the link is there for what fetches artifacts alone.
    current: hasUnit ? target?.replace(/^versions\//, "") : undefined,
    versions: await readdir(host.at(installed.versions)).catch(() => []),
    drifted: await check.drifted(manifest, host.at(versionDirectory(manifest.version)), signal),
    files,
    unitActive,
    enabled: await exists(host.at(installed.wanted)),
    edited: new Set(edited),
    unread: unitActive && edited.length > 0 ? await unreadOf(host, edited, signal) : new Set(),
    kubelet: await kubeletFacts(host, signal),
  };
}

/** Those of `files` that were changed or removed after the runtime's process was started. */
async function unreadOf(host: Host, files: string[], signal: AbortSignal): Promise<Set<string>> {
  const shown = await host.run(
    ["systemctl", "show", paths.unit, "--timestamp=unix", "-p", "ExecMainStartTimestamp"],
    { signal },
  );
  // A systemd too old for the option says nothing: then every file counts as read.
  const started = Number(/^ExecMainStartTimestamp=@([0-9]+)$/m.exec(shown.stdout)?.[1] ?? Infinity);
  const changed = await Promise.all(
    files.map(async (path) => {
      const stat = await lstat(host.at(path)).catch(() => undefined);
      // A file that is not there was there when the runtime was started: it cannot start without.
      return stat === undefined ? started < Infinity : stat.ctimeMs >= (started + 1) * 1000;
    }),
  );
  return new Set(files.filter((_, i) => changed[i]));
}

/** Every running process: pid and command line. */
async function* processes(): AsyncGenerator<{ pid: number; argv: string[] }> {
  for (const name of await readdir("/proc")) {
    if (!/^[0-9]+$/.test(name)) continue;
    const line = await read(`/proc/${name}/cmdline`);
    if (line !== undefined && line !== "")
      yield { pid: Number(name), argv: line.replace(/\0$/, "").split("\0") };
  }
}

/** The kubelet that runs as a systemd service of this host, in a process of its own or inside a distribution's. */
export async function findKubelet(): Promise<RunningKubelet | undefined> {
  for await (const { pid, argv } of processes()) {
    const inside = holderOf(argv);
    if (inside === undefined) continue;
    const program = await readlink(`/proc/${pid}/exe`).catch(() => "");
    const cgroups = (await read(`/proc/${pid}/cgroup`)) ?? "";
    const unit = /\/([^/\n]+\.service)$/m.exec(cgroups)?.[1];
    if (unit !== undefined) return { pid, argv, unit, program, inside };
  }
  return undefined;
}

async function kubeletFacts(host: Host, signal: AbortSignal): Promise<Facts["kubelet"]> {
  const kubelet = await findKubelet();
  if (kubelet === undefined) return undefined;
  const view = await kubeletView(host, kubelet, signal);
  return { unit: kubelet.unit, view, setting: findSetting(view) };
}

/** The files that a running kubelet's settings come from. */
export async function kubeletView(
  host: Host,
  kubelet: RunningKubelet,
  signal: AbortSignal,
): Promise<KubeletView> {
  if (kubelet.inside === "k3s") {
    const { argv, endpoint } = k3sKubelet(kubelet.program);
    return { ...(await viewOf(host, argv, [])), fallback: endpoint };
  }
  if (kubelet.inside === "microk8s") {
    const file = host.real(kubeliteArgsFile(kubelet.argv));
    const environ = (await read(`/proc/${kubelet.pid}/environ`)) ?? "";
    return viewOf(host, kubeliteArgs((await read(host.at(file))) ?? "", environ), []);
  }
  const shown = await host.run(
    ["systemctl", "show", kubelet.unit, "-p", "FragmentPath", "-p", "DropInPaths", "-p", "EnvironmentFiles"],
    { signal },
  );
  return viewOf(host, kubelet.argv, flagPaths(shown.stdout));
}

/** The paths in what `systemctl show` printed. */
export const flagPaths = (shown: string): string[] =>
  shown.split("\n").flatMap((line) => {
    const [key = "", ...rest] = line.split("=");
    const value = rest.join("=").trim();
    if (value === "") return [];
    if (key === "EnvironmentFiles")
      return [value.replace(/ \(ignore_errors=(yes|no)\)$/, "").replace(/^-/, "")];
    return key === "FragmentPath" || key === "DropInPaths" ? value.split(" ") : [];
  });

/** Reads the files that a kubelet's command line and its unit name. */
export async function viewOf(host: Host, argv: string[], flagFiles: string[]): Promise<KubeletView> {
  const flag = (name: string): string | undefined => {
    let value: string | undefined;
    argv.forEach((argument, i) => {
      if (argument.startsWith(`--${name}=`)) value = argument.slice(name.length + 3);
      else if (argument === `--${name}`) value = argv[i + 1];
    });
    return value === "" ? undefined : value;
  };
  const text = async (path: string): Promise<TextFile | undefined> => {
    const real = host.real(path);
    const body = await read(host.at(real));
    return body === undefined ? undefined : { path: real, body };
  };
  const config = flag("config");
  const directory = flag("config-dir");
  const named =
    directory === undefined
      ? []
      : await readdir(host.at(host.real(directory)), { recursive: true }).catch(() => []);
  const dropins = await Promise.all(
    named
      .filter((name) => name.endsWith(".conf"))
      .sort(byWalk)
      .map((name) => text(join(directory ?? "", name))),
  );
  const main = config === undefined ? undefined : await text(config);
  return {
    argv,
    flagFiles: (await Promise.all([...new Set(flagFiles)].map(text))).filter((file) => file !== undefined),
    ...(main === undefined ? {} : { config: main }),
    ...(directory === undefined
      ? {}
      : {
          dropins: { directory: host.real(directory), files: dropins.filter((file) => file !== undefined) },
        }),
  };
}

/** Versions of ours that a running process was started from, or names on its command line. */
export async function busyVersions(): Promise<Set<string>> {
  const busy = new Set<string>();
  const pattern = new RegExp(`${installed.versions}/([^/\\0 ]+)`, "g");
  for await (const { pid, argv } of processes()) {
    const program = await readlink(`/proc/${pid}/exe`).catch((error: unknown) => messageOf(error));
    for (const match of `${program}\n${argv.join("\n")}`.matchAll(pattern)) busy.add(match[1] ?? "");
  }
  return busy;
}

/** Mount points below any of `roots`, deepest first, as the host's first process sees them. */
export async function mountsBelow(roots: string[]): Promise<string[]> {
  const table = (await read("/proc/1/mountinfo")) ?? "";
  return table
    .split("\n")
    .map((line) =>
      (line.split(" ")[4] ?? "").replace(/\\([0-7]{3})/g, (_, octal: string) =>
        String.fromCharCode(Number.parseInt(octal, 8)),
      ),
    )
    .filter((point) => roots.some((root) => point === root || point.startsWith(`${root}/`)))
    .reverse();
}

export const exists = async (path: string): Promise<boolean> =>
  (await lstat(path).catch(() => undefined)) !== undefined;
