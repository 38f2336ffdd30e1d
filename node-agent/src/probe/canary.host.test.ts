import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { canaryNamespace } from "@bulkhead/lib/api/group.ts";
import type { CriClient } from "@bulkhead/lib/cri/client.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { expect, test } from "vitest";
import { removeCanaries } from "./canary.ts";

test("a canary that a kubelet ended while it started is removed with its shim, where the engine refuses to stop it; nobody else's pod is", async () => {
  const id = randomBytes(32).toString("hex");
  // As a shim's command line.
  const shim = spawn(process.execPath, ["-e", "setInterval(() => {}, 1e6)", "--", "-id", id], {
    stdio: "ignore",
  });
  const ended = once(shim, "exit");
  const removed: string[] = [];
  /** A fake: an engine whose shim refuses for ever, as Kata's. */
  const engine = {
    runtime: {
      listPodSandbox: async () => ({
        items: [
          { id, metadata: { namespace: canaryNamespace } },
          { id: "other", metadata: { namespace: "tenant" } },
        ],
      }),
      stopPodSandbox: async () => {
        if (shim.exitCode === null && shim.signalCode === null)
          throw new RuntimeError("unknown", "failed to kill container: Sandbox not running");
      },
      removePodSandbox: async ({ podSandboxId }: { podSandboxId: string }) => void removed.push(podSandboxId),
    },
  } as unknown as CriClient;
  try {
    await once(shim, "spawn");
    const signal = AbortSignal.timeout(30_000);
    await expect(removeCanaries(engine, "vm", signal)).rejects.toThrow("Sandbox not running");
    expect(shim.signalCode).toBe(null);
    await removeCanaries(engine, "vm", signal, true);
    expect(await ended).toEqual([null, "SIGKILL"]);
    expect(removed).toEqual([id]);
  } finally {
    shim.kill("SIGKILL");
  }
});
