import { chmod, chown, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Linux, MountFlags } from "../../linux/linux.ts";
import { identify, isAlive, type ProcessId } from "../../linux/process.ts";
import type { Process, Spec } from "../../spec/oci.ts";
import { removeCgroup, specCgroup } from "../../stats/cgroup-removal.ts";
import { readLayout } from "../../stats/layout.ts";
import { mustRun, type RuntimeCommand, runDelete } from "./command.ts";

/** Files of a pod's holder in the pod's state directory. */
export const holderFiles = (stateDir: string) => ({
  bundle: join(stateDir, "holder"),
  rootfs: join(stateDir, "holder", "rootfs"),
  pid: join(stateDir, "holder", "pid"),
  pidNamespace: join(stateDir, "holder", "pid-namespace"),
});

const PAUSE = "/pause";

const process: Process = {
  user: { uid: 0, gid: 0 },
  args: [PAUSE],
  // youki starts nothing without one.
  env: ["PATH=/"],
  cwd: "/",
  noNewPrivileges: true,
  capabilities: { bounding: [], effective: [], permitted: [] },
};

/**
 * The spec of the process that holds a shared PID namespace: the namespaces, the cgroup and the id mappings of the
 * pod's own spec; a root that has one file in it, our static program, and nothing that belongs to the pod.
 */
export const holderSpec = (pod: Spec, rootfs: string, program: string): Spec => ({
  ociVersion: pod.ociVersion,
  root: { path: rootfs, readonly: true },
  process: {
    ...process,
    ...(pod.process?.oomScoreAdj === undefined ? {} : { oomScoreAdj: pod.process.oomScoreAdj }),
    ...(pod.process?.selinuxLabel === undefined ? {} : { selinuxLabel: pod.process.selinuxLabel }),
  },
  mounts: [
    { destination: "/proc", type: "proc", source: "proc", options: ["nosuid", "noexec", "nodev"] },
    { destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["nosuid", "noexec", "size=64k"] },
    { destination: PAUSE, type: "bind", source: program, options: ["bind", "ro", "nosuid", "nodev"] },
  ],
  linux: {
    namespaces: pod.linux?.namespaces ?? [{ type: "pid" }, { type: "mount" }],
    ...(pod.linux?.uidMappings ? { uidMappings: pod.linux.uidMappings } : {}),
    ...(pod.linux?.gidMappings ? { gidMappings: pod.linux.gidMappings } : {}),
    ...(pod.linux?.cgroupsPath ? { cgroupsPath: pod.linux.cgroupsPath } : {}),
    resources: { ...pod.linux?.resources, devices: [{ allow: false, access: "rwm" }] },
    maskedPaths: pod.linux?.maskedPaths ?? [],
    readonlyPaths: pod.linux?.readonlyPaths ?? [],
  },
});

type HolderDeps = {
  command: RuntimeCommand;
  systemdCgroup: boolean;
  program: string;
  linux: Pick<Linux, "mount" | "umount" | "kill">;
};

/** Starts the holder of pod `id` and pins its PID namespace. The runtime is the only process started for it. */
export const startHolder = async (
  id: string,
  stateDir: string,
  spec: Spec,
  { command, systemdCgroup, program, linux }: HolderDeps,
  signal: AbortSignal,
): Promise<{ process: ProcessId; pidNamespace: string }> => {
  const files = holderFiles(stateDir);
  await using undo = new AsyncDisposableStack();
  undo.defer(() => removeHolder(id, stateDir, { command, linux }, AbortSignal.timeout(10_000)));
  await mkdir(files.rootfs, { recursive: true, mode: 0o755 });
  // The root of a user namespace of the pod's own makes its mount points itself.
  const [uids, gids] = [spec.linux?.uidMappings?.[0], spec.linux?.gidMappings?.[0]];
  if (uids && gids) {
    await chown(files.bundle, 0, gids.hostID);
    await chmod(files.bundle, 0o710);
    await chown(files.rootfs, uids.hostID, gids.hostID);
  }
  await writeFile(join(files.bundle, "config.json"), JSON.stringify(holderSpec(spec, files.rootfs, program)));
  const cgroup = systemdCgroup ? ["--systemd-cgroup"] : [];
  const args = [...cgroup, "run", "--detach", "--bundle", files.bundle, "--pid-file", files.pid, id];
  const log = join(files.bundle, "runtime.log");
  await mustRun(command, args, `start the holder of pod "${id}"`, signal, log);
  const pid = Number(await readFile(files.pid, "utf8"));
  const process = identify(pid);
  if (process === undefined) throw new Error(`Cannot hold the PID namespace: process ${pid} is gone`);
  await writeFile(files.pidNamespace, "");
  await linux.mount(`/proc/${pid}/ns/pid`, files.pidNamespace, "", MountFlags.BIND, "");
  undo.move();
  return { process, pidNamespace: files.pidNamespace };
};

/** Ends the holder, and with it whatever is left in its PID namespace. */
export const stopHolder = async (
  holder: ProcessId,
  linux: Pick<Linux, "kill">,
  signal: AbortSignal,
): Promise<void> => {
  linux.kill(holder.pid, holder.startTime, 9);
  while (isAlive(holder)) {
    signal.throwIfAborted();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
};

/** Removes all traces of a holder; succeeds when there was none. */
export const removeHolder = async (
  id: string,
  stateDir: string,
  { command, linux }: Pick<HolderDeps, "command"> & { linux: Pick<Linux, "umount" | "kill"> },
  signal: AbortSignal,
): Promise<void> => {
  const files = holderFiles(stateDir);
  try {
    await linux.umount(files.pidNamespace, MountFlags.DETACH);
  } catch {
    // Not pinned: EINVAL or ENOENT.
  }
  const exists = await readFile(join(files.bundle, "config.json"), "utf8").then(
    () => true,
    () => false,
  );
  if (exists) await runDelete(command, id, signal);
  await removeCgroup(await specCgroup(join(files.bundle, "config.json"), id, readLayout()), linux);
  await rm(files.bundle, { recursive: true, force: true });
};
