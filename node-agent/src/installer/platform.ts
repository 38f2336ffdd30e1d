import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { mountsBelow } from "./facts.ts";
import { type Host, must } from "./host.ts";

const scratch = "/run/bulkhead-agent.probe";
const kvmDeadlineMs = 3_000;

/**
 * Whether the KVM platform of a `runsc` really runs here: /dev/kvm may be there and hang or refuse. Runs one process in a
 * sandbox on it and says no after three seconds: where it runs, it does so in a fraction of one.
 */
export async function kvmRuns(host: Host, runsc: string, signal: AbortSignal): Promise<boolean> {
  await mkdir(host.at(scratch), { recursive: true, mode: 0o700 });
  try {
    // All that it makes is to be in our directory, where we find it when it has to be killed.
    const where = ["env", `TMPDIR=${scratch}`, runsc, "--root", scratch, "--ignore-cgroups"];
    const { code } = await host.run([...where, "--platform", "kvm", "--network", "none", "do", "/bin/true"], {
      signal,
      timeoutMs: kvmDeadlineMs,
    });
    return code === 0;
  } catch {
    signal.throwIfAborted();
    return false;
  } finally {
    await killNaming(scratch);
    for (const point of await mountsBelow([scratch])) {
      const undo = { signal: AbortSignal.timeout(10_000) };
      await must(host.run(["umount", "-l", point], undo), `Cannot unmount "${point}"`);
    }
    await rm(host.at(scratch), { recursive: true, force: true });
  }
}

/** Kills what a sandbox that hung left behind: processes that name our scratch directory on their command line. */
async function killNaming(word: string): Promise<void> {
  for (const pid of await readdir("/proc")) {
    if (!/^[0-9]+$/.test(pid)) continue;
    const line = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    if (!line.includes(word)) continue;
    try {
      process.kill(Number(pid), "SIGKILL");
    } catch {
      // It ended meanwhile.
    }
  }
}
