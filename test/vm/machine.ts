import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { freePort } from "../tools/free-port.ts";
import { amd64 } from "./amd64.ts";
import { shellPort, writeDisk, writeInitrd } from "./disk.ts";
import type { Guest } from "./guest.ts";

/**
 * A virtual machine with a kernel of Debian under QEMU's emulation: what this machine's own kernel cannot show, such
 * as cgroup v2 with systemd. Emulation is ten to twenty times slower than the machine.
 */
export type Machine = AsyncDisposable & {
  kernel: string;
  /** Runs a shell script as root in the guest; throws when it fails or does not end in time. */
  sh(script: string, deadlineMs?: number): Promise<string>;
  /** The same, for scripts that are meant to fail. */
  trySh(script: string, deadlineMs?: number): Promise<{ code: number; output: string }>;
};

const bootDeadlineMs = 600_000;
const shellDeadlineMs = 300_000;

/** Boots it and waits for its shell. `registry` is HOST:PORT on loopback. */
export const startMachine = async (
  registry: string,
  signal: AbortSignal,
  guest: Guest = amd64,
): Promise<Machine> => {
  await using undo = new AsyncDisposableStack();
  const scratch = await mkdtemp(join(tmpdir(), "bulkhead-vm-"));
  undo.defer(() => rm(scratch, { recursive: true, force: true }));
  const kernel = await guest.kernel(signal);
  const [disk, initrd, console] = ["disk.raw", "initrd.gz", "console.log"].map((name) =>
    join(scratch, name),
  ) as [string, string, string];
  await writeInitrd(initrd, guest, kernel, scratch, signal);
  await writeDisk(disk, guest, kernel, registry, scratch, signal);

  const port = await freePort();
  await using log = await open(join(scratch, "qemu.log"), "a");
  const [program, ...emulated] = guest.qemu;
  const child = spawn(
    program,
    [
      // One processor: with two, one boot in ten fails under emulation.
      ...[...emulated, "-accel", "tcg", "-smp", "1", "-m", "2560"],
      ...["-display", "none", "-nodefaults", "-no-reboot", "-serial", `file:${console}`],
      ...["-kernel", kernel.image, "-initrd", initrd],
      ...[
        "-append",
        `console=${guest.console} root=/dev/vda rw mitigations=off nokaslr systemd.unified_cgroup_hierarchy=1`,
      ],
      ...["-drive", `file=${disk},if=none,id=disk,format=raw,cache=unsafe`],
      ...["-device", "virtio-blk-pci,drive=disk"],
      ...["-netdev", `user,id=net,hostfwd=tcp:127.0.0.1:${port}-:${shellPort}`],
      ...["-device", "virtio-net-pci,netdev=net"],
    ],
    { stdio: ["ignore", log.fd, log.fd] },
  );
  const end = (): void => void child.kill("SIGKILL");
  process.on("exit", end);
  undo.defer(async () => {
    process.off("exit", end);
    if (child.exitCode === null && child.signalCode === null) {
      const ended = once(child, "exit");
      child.kill("SIGKILL");
      await ended;
    }
  });

  const trySh = async (script: string, deadlineMs = shellDeadlineMs) =>
    shell(port, script, AbortSignal.any([signal, AbortSignal.timeout(deadlineMs)]));
  for (const deadline = Date.now() + bootDeadlineMs; ; await sleep(1000, undefined, { signal })) {
    const { output } = await trySh("echo up", 10_000).catch(() => ({ output: "" }));
    if (output === "up\n") break;
    if (Date.now() > deadline || child.exitCode !== null) {
      const said = (await readFile(console, "utf8").catch(() => "")).slice(-4000);
      throw new RuntimeError("deadline-exceeded", `Cannot boot ${kernel.version} under QEMU:\n${said}`);
    }
  }
  const kept = undo.move();
  return {
    kernel: kernel.version,
    trySh,
    async sh(script, deadlineMs) {
      const { code, output } = await trySh(script, deadlineMs);
      if (code !== 0)
        throw new RuntimeError("unknown", `Cannot run in the guest: exit code ${code}\n${script}\n${output}`);
      return output;
    },
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  };
};

/** One connection is one shell: the script goes in, output and exit code come out. */
const shell = async (
  port: number,
  script: string,
  signal: AbortSignal,
): Promise<{ code: number; output: string }> => {
  const socket = connect({ host: "127.0.0.1", port });
  const abort = (): void => void socket.destroy(signal.reason as Error);
  signal.addEventListener("abort", abort, { once: true });
  try {
    const chunks: Buffer[] = [];
    // The script is an argument, so that nothing it runs eats what follows as input.
    const quoted = `'${script.replaceAll("'", "'\\''")}'`;
    socket.write(`sh -ec ${quoted} 2>&1 </dev/null; echo "BULKHEAD_EXIT $?"; exit\n`);
    for await (const chunk of socket) chunks.push(chunk as Buffer);
    const text = Buffer.concat(chunks).toString();
    const found = /^([\s\S]*?)BULKHEAD_EXIT (\d+)\n/.exec(text);
    if (found?.[1] === undefined)
      throw new RuntimeError("unavailable", `Cannot hear the guest's shell end: ${text}`);
    return { code: Number(found[2]), output: found[1] };
  } finally {
    signal.removeEventListener("abort", abort);
    socket.destroy();
  }
};
