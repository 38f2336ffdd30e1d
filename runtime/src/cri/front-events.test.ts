import { create } from "@bufbuild/protobuf";
import type { CriClient, CriServices } from "@bulkhead/lib/cri/client.ts";
import {
  type ContainerEventResponse,
  ContainerEventResponseSchema,
  GetEventsRequestSchema,
  VersionResponseSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { expect, test } from "vitest";
import { front } from "../handler/delegate/front.ts";
import { Events } from "./events.ts";

/* The engine is a fake: one event stream that breaks, and an answer to Version by order. */

const event = (containerId: string) => create(ContainerEventResponseSchema, { containerId });

const fronted = (engineStream: () => AsyncGenerator<ContainerEventResponse>) => {
  const own = new Events();
  const engine = { isUp: true };
  const services = front(
    {
      runtime: { getContainerEvents: (_: unknown, signal: AbortSignal) => own.read(signal) },
      image: {},
    } as unknown as CriServices,
    {
      runtime: {
        getContainerEvents: engineStream,
        version: async () => {
          if (!engine.isUp) throw new RuntimeError("unavailable", "down");
          return create(VersionResponseSchema);
        },
      },
      image: {},
    } as unknown as CriClient,
    { stateDir: "/nowhere", log: { warn: () => {} } } as unknown as Parameters<typeof front>[2],
  );
  const stop = new AbortController();
  const got: string[] = [];
  const read = (async () => {
    const request = create(GetEventsRequestSchema);
    for await (const { containerId } of services.runtime.getContainerEvents(request, stop.signal))
      got.push(containerId);
  })();
  return { own, engine, got, read, stop };
};

test("an event stream whose engine's part breaks goes on with ours, and ends in an error when the engine is back", async () => {
  const { own, engine, got, read } = fronted(async function* () {
    yield event("engine's");
    throw new RuntimeError("unavailable", "connection reset");
  });
  engine.isUp = false;
  read.catch(() => {});
  await expect.poll(() => got).toEqual(["engine's"]);
  own.send(event("ours"));
  await expect.poll(() => got).toEqual(["engine's", "ours"]);
  engine.isUp = true;
  await expect(read).rejects.toThrow(/those of the engine behind were interrupted/);
});

test("an engine without events leaves ours alone", async () => {
  // biome-ignore lint/correctness/useYield: it has none
  const { own, got, read, stop } = fronted(async function* () {
    throw new RuntimeError("unimplemented", "no events");
  });
  await new Promise(setImmediate);
  own.send(event("ours"));
  await expect.poll(() => got).toEqual(["ours"]);
  stop.abort();
  await read;
});

test("when our own stream is cut off, all of it is", async () => {
  const { own, read } = fronted(async function* () {
    yield event("engine's");
    await new Promise(() => {});
  });
  await new Promise(setImmediate);
  for (let n = 0; n < 2000; n++) own.send(event(String(n)));
  await expect(read).rejects.toMatchObject({ code: "resource-exhausted" });
});
