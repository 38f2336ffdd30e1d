import { mkdir, rm } from "node:fs/promises";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { killNaming } from "../processes.ts";
import { mountsBelow } from "./facts.ts";
import { type Gvisor, type Platform, platforms } from "./gvisor.ts";
import { type Host, must } from "./host.ts";
import type { VmFacts } from "./kata/node.ts";

/** Whether a platform of gVisor ran a process on this node, and if not, why. */
export type Trial = { name: Platform; works: boolean; message?: string };

const usualDeadlineMs = 20_000;
const maxMessage = 200;
/** systrap comes first where it is as good; ptrace is never chosen, only asked for. */
const autoOrder: readonly Platform[] = ["kvm", "systrap"];

/**
 * Tries each platform of a `runsc` with one process in a sandbox. `kvm`: whether KVM booted a guest; where it did not, no
 * sandbox would start on it, and may hang. `deadlineMs`: what each may take.
 */
export async function tryPlatforms(
  host: Host,
  runsc: string,
  kvm: VmFacts["kvm"],
  signal: AbortSignal,
  deadlineMs = usualDeadlineMs,
): Promise<Trial[]> {
  const trials: Trial[] = [];
  for (const name of platforms) {
    const message =
      name === "kvm" && !kvm.runs
        ? `KVM boots no guest here: ${kvm.why}`.slice(0, maxMessage)
        : await failureOf(host, runsc, name, signal, deadlineMs);
    trials.push({ name, works: message === undefined, ...(message === undefined ? {} : { message }) });
  }
  return trials;
}

/** The platform for what a profile asks, or why there is none. */
export function choosePlatform(
  asked: Gvisor["platform"],
  trials: readonly Trial[],
): { platform: Platform; trouble?: string } {
  const of = (name: Platform) => trials.find((trial) => trial.name === name);
  if (asked === "auto") return { platform: autoOrder.find((name) => of(name)?.works) ?? "systrap" };
  const trial = of(asked);
  if (trial?.works !== false) return { platform: asked };
  return {
    platform: asked,
    trouble: `Cannot run gVisor's platform "${asked}" on this node: ${trial.message ?? "it was tried and failed"}`,
  };
}

/** Runs one process in a sandbox; undefined when it ended well. */
async function failureOf(
  host: Host,
  runsc: string,
  platform: Platform,
  signal: AbortSignal,
  timeoutMs: number,
): Promise<string | undefined> {
  // All that it makes is to be in our directory, where we find it when it has to be killed.
  const scratch = `/run/bulkhead-agent.probe-${platform}`;
  await mkdir(host.at(scratch), { recursive: true, mode: 0o700 });
  try {
    const where = ["env", `TMPDIR=${scratch}`, runsc, "--root", scratch, "--ignore-cgroups"];
    const { code, stderr } = await host.run(
      [...where, "--platform", platform, "--network", "none", "do", "/bin/true"],
      { signal, timeoutMs },
    );
    return code === 0 ? undefined : lastWords(stderr) || `exit code ${code}`;
  } catch (error) {
    signal.throwIfAborted();
    return /did not end in/.test(messageOf(error))
      ? `a process on it did not end in ${timeoutMs / 1000} s`
      : messageOf(error).slice(0, maxMessage);
  } finally {
    // What a sandbox that hung left behind.
    await killNaming(scratch);
    for (const point of await mountsBelow([scratch])) {
      const undo = { signal: AbortSignal.timeout(10_000) };
      await must(host.run(["umount", "-l", point], undo), `Cannot unmount "${point}"`);
    }
    await rm(host.at(scratch), { recursive: true, force: true });
  }
}

const lastWords = (text: string): string => (text.trim().split("\n").at(-1) ?? "").slice(0, maxMessage);
