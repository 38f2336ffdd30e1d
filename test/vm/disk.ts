import { copyFile, mkdir, realpath, rm, symlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { canaryImage } from "@bulkhead/lib/api/group.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { bundle, workersOf } from "../../images/bundle.ts";
import { run } from "../tools/run.ts";
import type { Guest } from "./guest.ts";
import { type Kernel, modulePaths } from "./kernel.ts";

/** How the guest calls the machine that runs it (QEMU's user network). */
export const hostAddress = "10.0.2.2";
/** The guest's shell listens here: a script comes in, what it says goes out. */
export const shellPort = 7000;

const repository = join(import.meta.dirname, "../..");

/** Pinned programs of the guest, by their place in it. */
const programs: Record<string, string> = {
  runc: "usr/local/bin/runc",
  runsc: "usr/local/bin/runsc",
  "containerd-shim-runsc-v1": "usr/local/bin/containerd-shim-runsc-v1",
  crictl: "usr/local/bin/crictl",
  "cni/bridge": "opt/cni/bin/bridge",
  "cni/loopback": "opt/cni/bin/loopback",
  "cni/host-local": "opt/cni/bin/host-local",
  "cni/portmap": "opt/cni/bin/portmap",
};

/** Programs of ours that are compiled, in opt/bulkhead/bin. */
const compiled = {
  "bulkhead-exec-reaper": "runtime/src/monitor/exec/reaper.c",
  "bulkhead-kvm-probe": "node-agent/src/installer/kata/kvm-probe.c",
};

const units = {
  "shell.service": `[Unit]
Description=A shell for the test that started this machine
[Service]
ExecStart=/usr/bin/socat TCP-LISTEN:${shellPort},reuseaddr,fork EXEC:/bin/sh,stderr
KillMode=process
[Install]
WantedBy=multi-user.target
`,
  "bulkhead-runtime.service": `[Unit]
Description=Bulkhead container runtime
After=network-online.target
[Service]
Environment=NODE_ENV=production
ExecStart=/usr/local/bin/node /opt/bulkhead/runtime/main.mjs serve
KillMode=process
Delegate=yes
[Install]
WantedBy=multi-user.target
`,
  // QEMU's user network has its addresses always.
  "uplink.service": `[Unit]
Description=QEMU's user network
DefaultDependencies=no
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'modprobe virtio_net; for i in 1 2 3 4 5 6 7 8 9; do link=$(ls /sys/class/net | grep -v lo | head -1); [ -n "$link" ] && break; sleep 0.3; done; ip link set "$link" up && ip address add 10.0.2.15/24 dev "$link" && ip route add default via ${hostAddress}'
[Install]
WantedBy=multi-user.target
`,
};

const runtimeConfig = (registry: string): object => {
  const mirror = [`http://${hostAddress}:${registry.split(":").at(-1)}`];
  return {
    registries: {
      mirrors: Object.fromEntries(
        ["registry.k8s.io", "gcr.io", "k8s.gcr.io", dirname(canaryImage)].map((host) => [host, mirror]),
      ),
    },
    conmon: "/usr/local/bin/conmon",
    runtimes: [{ name: "runc", kind: "oci", binary: "/usr/local/bin/runc", restoreCheckpoints: true }],
    log: { level: "info", format: "text" },
  };
};

const network = {
  cniVersion: "1.0.0",
  name: "pods",
  plugins: [
    {
      type: "bridge",
      bridge: "cni0",
      isGateway: true,
      ipMasq: true,
      ipam: {
        type: "host-local",
        ranges: [[{ subnet: "10.88.0.0/16" }]],
        routes: [{ dst: "0.0.0.0/0" }],
      },
    },
    { type: "portmap", capabilities: { portMappings: true } },
  ],
};

/** Handlers of gVisor by name, each with its platform. */
const gvisorHandlers = { gvisor: "systrap", "gvisor-kvm": "kvm" };
const gvisorHandler = (name: string): object => ({
  kind: "shim",
  name,
  binary: "/usr/local/bin/containerd-shim-runsc-v1",
  optionsTypeUrl: "io.containerd.runsc.v1.options",
  configPath: `/etc/bulkhead/runsc/${name}.toml`,
  wall: "kernel",
  runsc: { binary: "/usr/local/bin/runsc", root: "/run/bulkhead/runsc" },
});

/**
 * Writes the guest's root disk to `file`: the root filesystem of the test nodes with systemd, the runtime as it is
 * released, the pinned programs, and units for them. `registry` (HOST:PORT on loopback) mirrors what the tests pull.
 */
export const writeDisk = async (
  file: string,
  guest: Guest,
  kernel: Kernel,
  registry: string,
  scratch: string,
  signal: AbortSignal,
): Promise<void> => {
  const upper = join(scratch, "upper");
  const merged = join(scratch, "merged");
  const put = async (path: string, text: string): Promise<void> => {
    await mkdir(dirname(join(upper, path)), { recursive: true });
    await writeFile(join(upper, path), text);
  };
  const copy = async (from: string, path: string): Promise<void> => {
    await mkdir(dirname(join(upper, path)), { recursive: true });
    await copyFile(await realpath(from), join(upper, path));
  };
  const wanted = join(upper, "etc/systemd/system/multi-user.target.wants");
  await mkdir(wanted, { recursive: true });
  for (const [name, text] of Object.entries(units)) {
    await put(`etc/systemd/system/${name}`, text);
    await symlink(`../${name}`, join(wanted, name));
  }
  await put("etc/machine-id", `${"b".repeat(32)}\n`);
  await put("etc/hostname", "bulkhead-vm\n");
  await put("etc/resolv.conf", "");
  await put("etc/fstab", "");
  // JSON is YAML.
  await put("etc/bulkhead/runtime.yaml", JSON.stringify(runtimeConfig(registry)));
  for (const [name, platform] of Object.entries(gvisorHandlers)) {
    await put(`etc/bulkhead/handlers.d/${name}.yaml`, JSON.stringify(gvisorHandler(name)));
    await put(
      `etc/bulkhead/runsc/${name}.toml`,
      `binary_name = "/usr/local/bin/runsc"\nroot = "/run/bulkhead/runsc"\n\n[runsc_config]\n  platform = "${platform}"\n`,
    );
  }
  await put("etc/cni/net.d/10-pods.conflist", JSON.stringify(network));
  // Two seconds, crictl's own deadline, are not enough under emulation.
  await put("etc/crictl.yaml", `runtime-endpoint: unix://${paths.socket}\ntimeout: 120\n`);
  for (const [name, path] of Object.entries(programs)) await copy(guest.tool(name), path);
  // With it the agent enters its node's namespaces.
  await copy(guest.busybox, "usr/local/bin/busybox");
  await guest.addPrograms(upper, kernel, signal);

  const runtime = join(upper, "opt/bulkhead/runtime");
  await bundle({ main: "runtime/src/main.ts", ...(await workersOf("runtime/src")) }, runtime);
  for (const [name, directory] of [
    ["koffi", join(repository, "node_modules/koffi")],
    [guest.koffi.name, guest.koffi.directory],
  ] as const) {
    await mkdir(join(runtime, "node_modules", dirname(name)), { recursive: true });
    await run(["cp", "-r", directory, join(runtime, "node_modules", name)], { signal });
  }
  await bundle({ main: "test/vm/main.ts" }, join(upper, "opt/bulkhead/test"));
  await put("opt/bulkhead/package.json", JSON.stringify({ version: "0.0.0-vm", type: "module" }));
  await mkdir(join(upper, "opt/bulkhead/bin"), { recursive: true });
  for (const [name, source] of Object.entries(compiled)) {
    const program = join(upper, "opt/bulkhead/bin", name);
    await run([guest.cc, "-Os", "-static", "-o", program, join(repository, source)], { signal });
  }

  await using undo = new AsyncDisposableStack();
  await mkdir(merged);
  const options = `lowerdir=${await guest.rootfs(signal)},upperdir=${upper},workdir=${join(scratch, "work")}`;
  await mkdir(join(scratch, "work"));
  await run(["mount", "-t", "overlay", "bulkhead-vm", "-o", options, merged], { signal });
  undo.defer(async () => void (await run(["umount", merged])));
  await run(["depmod", "-b", merged, kernel.version], { signal });
  await rm(file, { force: true });
  await run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", merged, file, "3G"], { signal });
};

/** The modules that the guest needs to find its disk, in the order of loading. */
const early = [
  "virtio_ring",
  "virtio",
  "virtio_pci_modern_dev",
  "virtio_pci_legacy_dev",
  "virtio_pci",
  "virtio_blk",
];

const init = `#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for module in ${early.join(" ")}; do insmod /modules/$module.ko; done
for i in 1 2 3 4 5 6 7 8 9; do [ -b /dev/vda ] && break; sleep 0.2; done
mount -t ext4 /dev/vda /root
umount /proc
mount --move /dev /root/dev
exec switch_root /root /lib/systemd/systemd
`;

/** Writes the initial RAM disk: busybox, the modules of the disk, and a script. */
export const writeInitrd = async (
  file: string,
  guest: Guest,
  kernel: Kernel,
  scratch: string,
  signal: AbortSignal,
): Promise<void> => {
  const tree = join(scratch, "initrd");
  for (const dir of ["bin", "dev", "proc", "root", "modules"])
    await mkdir(join(tree, dir), { recursive: true });
  await copyFile(guest.busybox, join(tree, "bin/busybox"));
  for (const name of ["sh", "mount", "umount", "insmod", "sleep", "switch_root", "["])
    await symlink("busybox", join(tree, "bin", name));
  const modules = await modulePaths(kernel);
  for (const name of early) {
    const path = modules.get(name);
    // Built into the kernel otherwise.
    if (path !== undefined) await copyFile(path, join(tree, "modules", `${name}.ko`));
  }
  await writeFile(join(tree, "init"), init, { mode: 0o755 });
  await run(["sh", "-c", `cd "$1" && find . | busybox cpio -o -H newc | gzip -1 >"$2"`, "sh", tree, file], {
    signal,
  });
};
