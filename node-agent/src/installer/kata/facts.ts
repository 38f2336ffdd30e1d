import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { open, readFile, statfs } from "node:fs/promises";
import { promisify } from "node:util";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import type { Host } from "../host.ts";
import type { Architecture } from "./installation.ts";
import { type HugePages, neededControllers, type VmFacts } from "./node.ts";

/** The probe ends itself after five seconds, unless the kernel does not let it. */
const probeDeadlineMs = 8_000;

/** Looks at what virtual machines need of the node. `probe`: bulkhead-kvm-probe (kvm-probe.c). */
export async function vmFacts(host: Host, probe: string): Promise<VmFacts> {
  const opens = (path: string): Promise<boolean> =>
    open(host.at(path), "r+").then(
      (file) => file.close().then(() => true),
      () => false,
    );
  const [kvm, vhostVsock, vhostNet, missingControllers, nested, hugePages] = await Promise.all([
    bootGuest(probe, host.at("/dev/kvm")),
    opens("/dev/vhost-vsock"),
    opens("/dev/vhost-net"),
    missing(host),
    isGuest(host),
    hugePagesOf(host),
  ]);
  const arch: Architecture = process.arch === "arm64" ? "arm64" : "amd64";
  // A path of the node may lead through its own symbolic links: /opt/kata is one where it came by an installer.
  const has = (path: string): boolean => existsSync(host.at(host.real(path)));
  return { arch, kvm, vhostVsock, vhostNet, nested, hugePages, missingControllers, has };
}

/** Boots the smallest guest there is on a KVM device; `why` says what came of it instead. */
export async function bootGuest(probe: string, device: string): Promise<VmFacts["kvm"]> {
  try {
    await promisify(execFile)(probe, [device], { timeout: probeDeadlineMs, killSignal: "SIGKILL" });
    return { runs: true, why: "" };
  } catch (error) {
    const { stdout, signal } = error as { stdout?: string; signal?: string };
    const said = (stdout ?? "").trim();
    return { runs: false, why: said || (signal ? "the guest did not end in time" : messageOf(error)) };
  }
}

/** Whether the node is a virtual machine itself, as its systemd knows processors, firmware and device trees. */
async function isGuest(host: Host): Promise<boolean> {
  const argv = ["systemd-detect-virt", "--vm", "--quiet"];
  const none = new AbortController();
  return host.run(argv, { signal: none.signal, timeoutMs: 5_000 }).then(
    ({ code }) => code === 0,
    () => false,
  );
}

/** HUGETLBFS_MAGIC of linux/magic.h. */
const hugetlbfs = 0x958458f6;

export async function hugePagesOf(host: Host): Promise<HugePages> {
  const mounted = await statfs(host.at("/dev/hugepages")).catch(() => undefined);
  if (mounted?.type !== hugetlbfs)
    return {
      mebibytes: 0,
      problem: "no hugetlbfs is mounted at /dev/hugepages: start dev-hugepages.mount",
    };
  const size = mounted.bsize / 1024;
  const pool = `/sys/kernel/mm/hugepages/hugepages-${size}kB`;
  const counts = await Promise.all(
    ["nr_hugepages", "nr_overcommit_hugepages"].map((name) =>
      readFile(host.at(`${pool}/${name}`), "utf8").then(Number, () => 0),
    ),
  );
  const some = counts.some((count) => count > 0);
  return {
    mebibytes: size / 1024,
    problem: some ? "" : `no huge pages of ${size} KiB are set aside: see sysctl vm.nr_hugepages`,
  };
}

async function missing(host: Host): Promise<string[]> {
  const offered = await readFile(host.at("/sys/fs/cgroup/cgroup.controllers"), "utf8").catch(() => undefined);
  if (offered === undefined) return [];
  const names = new Set(offered.trim().split(" "));
  return neededControllers.filter((name) => !names.has(name));
}
