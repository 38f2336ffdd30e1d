import { apiVersion } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import type { Client } from "@bulkhead/lib/kube/client.ts";
import { expect, test } from "vitest";
import { createAgents } from "./agents.ts";

test("Signs of life that hang hold up no answer, and are not begun once more", async () => {
  const count = 100;
  const items = Array.from(
    { length: count },
    (_, index): NodeRuntime => ({
      apiVersion,
      kind: "NodeRuntime",
      metadata: { name: `n${index}`, uid: `${index}`, generation: 1, resourceVersion: "1" },
      spec: { profiles: [] },
      // It reported before, of another spec.
      status: { heartbeat: "2026-01-01T00:00:00Z", observedGeneration: 0 },
    }),
  );
  const stop = new AbortController();
  const { promise: never, reject } = Promise.withResolvers<never>();
  never.catch(() => {});
  let answered = 0;
  /** A fake of an API server that answers reports and nothing else. */
  const client = {
    list: async () => ({ items, resourceVersion: "1" }),
    watch: () => ({ [Symbol.asyncIterator]: () => ({ next: () => never }) }),
    patch: () => never,
    create: () => never,
    applyStatus: async () => void answered++,
  } as unknown as Client;
  const agents = createAgents(client, "default", {
    seconds: { median: 2, longest: 2 },
    failAtFirst: 0,
    flap: 0,
    heartbeatSeconds: 1,
  });
  const running = agents.run(stop.signal);
  await expect.poll(() => answered, { timeout: 25_000 }).toBeGreaterThanOrEqual(count);
  // A sign of each node, and a touch by its kubelet.
  expect(agents.progress().queued).toBeLessThanOrEqual(2 * count);
  stop.abort();
  reject(new Error("over"));
  await running;
}, 30_000);
