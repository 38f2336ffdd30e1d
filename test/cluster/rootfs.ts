import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { chmod, copyFile, link, mkdir, mkdtemp, rename, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { inCache, tool } from "../tools/cache.ts";
import { type KubernetesVersion, kube } from "../tools/kubernetes.ts";
import { run } from "../tools/run.ts";

const suite = "bookworm";

/** What a node has beyond Debian's minimum, as an ordinary Kubernetes host does. */
const packages = [
  "systemd",
  "systemd-sysv",
  "dbus",
  "iproute2",
  "iptables",
  "nftables",
  "kmod",
  "procps",
  "ethtool",
  "conntrack",
  "socat",
  "iputils-ping",
  "ca-certificates",
  "less",
];

/** Documentation and translations: no node reads them. */
const excluded = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

/** The root filesystem of every node, read-only: made by mmdebstrap once per list of packages. */
export const nodeRootfs = async (signal?: AbortSignal): Promise<string> => {
  const home = inCache("rootfs", digest([suite, ...packages, ...excluded]));
  if (existsSync(home)) return home;
  await mkdir(inCache("rootfs"), { recursive: true });
  const scratch = await mkdtemp(inCache("rootfs", ".new-"));
  try {
    await run(
      [
        ...["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", `--include=${packages.join(",")}`],
        ...['--aptopt=Acquire::Languages "none"'],
        ...excluded.map((path) => `--dpkgopt=path-exclude=${path}`),
        // Every node gets its own.
        '--customize-hook=rm -f "$1/etc/machine-id" "$1/etc/hostname" "$1/etc/resolv.conf"',
        ...[suite, join(scratch, "tree")],
      ],
      { signal },
    );
    await chmod(join(scratch, "tree"), 0o755);
    await rename(join(scratch, "tree"), home).catch((error: unknown) => {
      if (!existsSync(home)) throw error;
    });
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return home;
};

/** Where each pinned program stands on a node, by the name of the tool. */
const programs = {
  containerd: "usr/local/bin/containerd",
  "containerd-shim-runc-v2": "usr/local/bin/containerd-shim-runc-v2",
  ctr: "usr/local/bin/ctr",
  runc: "usr/local/bin/runc",
  crictl: "usr/local/bin/crictl",
  "cni/bridge": "opt/cni/bin/bridge",
  "cni/loopback": "opt/cni/bin/loopback",
  "cni/ptp": "opt/cni/bin/ptp",
  "cni/host-local": "opt/cni/bin/host-local",
  "cni/portmap": "opt/cni/bin/portmap",
  "cni/firewall": "opt/cni/bin/firewall",
} as const;

/**
 * A read-only layer with the pinned programs, laid over the root filesystem. Its files are links to the tools:
 * it costs no disk, and all nodes share their pages.
 */
export const nodePrograms = async (kubelet: KubernetesVersion): Promise<string> => {
  const files = [
    [kube(kubelet), "usr/local/bin/kubelet"],
    ...Object.entries(programs).map(([name, path]) => [tool(name), path]),
  ] as [from: string, path: string][];
  const stats = await Promise.all(
    files.map(async ([from]) => {
      const { ino, size, mtimeMs } = await stat(from);
      return `${from} ${ino} ${size} ${mtimeMs}`;
    }),
  );
  const home = inCache("node-programs", digest(stats));
  if (existsSync(home)) return home;
  await mkdir(dirname(home), { recursive: true });
  const scratch = await mkdtemp(`${home}.new-`);
  await chmod(scratch, 0o755);
  for (const [from, path] of files) {
    const target = join(scratch, path);
    await mkdir(dirname(target), { recursive: true });
    await link(from, target).catch(() => copyFile(from, target));
  }
  await rename(scratch, home).catch(async (error: unknown) => {
    await rm(scratch, { recursive: true, force: true });
    if (!existsSync(home)) throw error;
  });
  return home;
};

const digest = (parts: readonly string[]): string =>
  createHash("sha256").update(parts.join("\n")).digest("hex").slice(0, 16);
