import { describe, expect, test } from "vitest";
import { virtualClock } from "../std/clock.ts";
import type { Client } from "./client.ts";
import { createRecorder, type EventInput, type KubeEvent } from "./events.ts";
import type { KubeObject } from "./object.ts";

/** A recorder on a clock of its own, and what it wrote: the API server's part is only to take it. */
const recorded = () => {
  const clock = virtualClock(Date.parse("2026-01-01T00:00:00Z"));
  const created: KubeEvent[] = [];
  const patched: { name: string; body: unknown }[] = [];
  const client = {
    create: async (_: unknown, object: KubeObject) => {
      created.push(object as KubeEvent);
      return object;
    },
    patch: async (_: unknown, name: string, body: unknown) => {
      patched.push({ name, body });
      return body;
    },
  } as unknown as Pick<Client, "create" | "patch">;
  const recorder = createRecorder({ client, controller: "bulkhead.dev/agent", instance: "node-1", clock });
  const emit = async (reason: string, note: string): Promise<void> => {
    recorder.emit(event(reason, note));
    await recorder.flush();
  };
  return { clock, created, patched, emit };
};

const event = (reason: string, note: string): EventInput => ({
  regarding: { apiVersion: "bulkhead.dev/v1alpha1", kind: "NodeRuntime", name: "node-1" },
  type: "Normal",
  reason,
  action: reason,
  note,
});

describe("The recorder of Events", () => {
  test("counts an equal event within six minutes instead of writing another", async () => {
    const { clock, created, patched, emit } = recorded();
    await emit("Ready", "canary passed");
    await clock.advance(5 * 60_000);
    await emit("Ready", "canary passed");
    expect(created).toHaveLength(1);
    expect(patched).toEqual([
      {
        name: created[0]?.metadata.name,
        body: { series: { count: 2, lastObservedTime: "2026-01-01T00:05:00.000000Z" } },
      },
    ]);
    await clock.advance(6 * 60_000);
    await emit("Ready", "canary passed");
    expect(created).toHaveLength(2);
  });

  test("holds back what one reason says too often, never what another says", async () => {
    const { clock, created, emit } = recorded();
    for (let n = 0; n < 100; n++) await emit("Ready", `canary passed in ${n} ms`);
    expect(created).toHaveLength(25);
    await emit("Drifted", "a file was changed");
    expect(created.at(-1)?.reason).toBe("Drifted");
    await clock.advance(60_000);
    await emit("Ready", "canary passed in 1.5 s");
    expect(created.at(-1)?.note).toBe("canary passed in 1.5 s");
  });
});
