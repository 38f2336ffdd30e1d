import { create } from "@bufbuild/protobuf";
import { ContainerEventResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { expect, test } from "vitest";
import { Events } from "./events.ts";

const event = (containerId: string) => create(ContainerEventResponseSchema, { containerId });
const ids = async (events: Events, count: number, signal: AbortSignal): Promise<string[]> => {
  const got: string[] = [];
  for await (const { containerId } of events.read(signal)) if (got.push(containerId) === count) break;
  return got;
};

test("every reader gets every event, in order, from when it began until it leaves", async () => {
  const events = new Events();
  const leave = new AbortController();
  events.send(event("before"));
  const [one, two] = [ids(events, 3, leave.signal), ids(events, 99, leave.signal)];
  for (const id of ["a", "b", "c"]) events.send(event(id));
  expect(await one).toEqual(["a", "b", "c"]);
  events.send(event("d"));
  await new Promise(setImmediate);
  leave.abort();
  expect(await two).toEqual(["a", "b", "c", "d"]);
  expect(events.listened).toBe(false);
});

test("a reader that does not read is cut off in words and keeps no memory; the others go on", async () => {
  const events = new Events();
  const { signal } = new AbortController();
  const slow = events.read(signal);
  const first = slow.next();
  events.send(event("0"));
  await first;
  const quick = ids(events, 1500, signal);
  for (let n = 0; n < 1500; n++) {
    events.send(event(String(n)));
    await new Promise(setImmediate);
  }
  expect((await quick).at(-1)).toBe("1499");
  // Not the end, which a caller would take for "no more will come": what it missed it must list.
  await expect(slow.next()).rejects.toMatchObject({ code: "resource-exhausted" });
  expect(events.listened).toBe(false);
});
