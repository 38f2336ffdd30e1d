import { expect, test } from "vitest";
import { type Clock, virtualClock } from "../std/clock.ts";
import { RuntimeError } from "../std/errors.ts";
import type { Client } from "./client.ts";
import { type Lease, runAsLeader } from "./lease.ts";

/** A fake of the API server's Lease, and of the ways to it. */
const fakeServer = () => {
  let lease: Lease | undefined;
  let version = 0;
  const put = (object: Lease): Lease => {
    lease = { ...object, metadata: { ...object.metadata, resourceVersion: String(++version) } };
    return lease;
  };
  const way = () => {
    const state = { cut: false, writes: 0 };
    const open = () => {
      if (state.cut) throw new RuntimeError("unavailable", "cut");
    };
    const client = {
      get: async () => {
        open();
        if (!lease) throw new RuntimeError("not-found", "none");
        return lease;
      },
      create: async (_: unknown, object: Lease) => {
        open();
        return put(object);
      },
      replace: async (_: unknown, object: Lease) => {
        open();
        if (object.metadata.resourceVersion !== lease?.metadata.resourceVersion)
          throw new RuntimeError("failed-precondition", "conflict");
        state.writes++;
        return put(object);
      },
    } as unknown as Pick<Client, "get" | "create" | "replace">;
    return { state, client };
  };
  return { way };
};

const contend = (
  way: ReturnType<ReturnType<typeof fakeServer>["way"]>,
  identity: string,
  time: ReturnType<typeof virtualClock>,
) => {
  /** How far this machine's wall clock was set. */
  const set = { by: 0 };
  const clock: Clock = { now: () => time.now() + set.by, sleep: (ms, signal) => time.sleep(ms, signal) };
  const state = { leads: false, isOurs: () => false, set, way: way.state };
  const stop = new AbortController();
  const done = runAsLeader(
    {
      ...{ client: way.client, namespace: "n", name: "l", identity, clock },
      // One renews less often than the other looks, so that it sees some renewal twice.
      ...{ steady: time.now, random: () => (identity === "one" ? 1 : 0) },
      onRenewed: (isOurs) => {
        state.isOurs = isOurs;
      },
    },
    async (signal) => {
      state.leads = true;
      await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
      state.leads = false;
    },
    stop.signal,
  );
  const ended = done.catch((error: unknown) => error);
  return Object.assign(state, { ended, stop: () => stop.abort() });
};

const two = async () => {
  const time = virtualClock(1_000_000);
  const server = fakeServer();
  const one = contend(server.way(), "one", time);
  await time.advance(100);
  const other = contend(server.way(), "other", time);
  await time.advance(5_000);
  expect([one.leads, other.leads]).toEqual([true, false]);
  return { time, one, other };
};

test("A standby whose clock is set on by an hour leaves the lease to who renews it", async () => {
  const { time, one, other } = await two();
  for (let turn = 0; turn < 40; turn++) {
    other.set.by += 3_600_000;
    await time.advance(333);
    expect([one.leads, other.leads]).toEqual([true, false]);
  }
  for (const each of [one, other]) each.stop();
  await time.advance(1_000);
});

test("A leader whose clock is set back by an hour goes on to renew, and ends in time when it is cut off", async () => {
  const { time, one, other } = await two();
  one.set.by -= 3_600_000;
  const { writes } = one.way;
  await time.advance(10_000);
  expect(one.way.writes - writes).toBeGreaterThan(2);
  one.way.cut = true;
  one.set.by -= 3_600_000;
  await time.advance(10_000);
  expect([one.leads, one.isOurs(), other.leads]).toEqual([false, false, false]);
  expect(await one.ended).toMatchObject({ message: 'Cannot renew lease "n/l": lost it' });
  await time.advance(8_000);
  expect(other.leads).toBe(true);
  other.stop();
  await time.advance(1_000);
});

test("A leader that slept while only the wall's clock went on writes nothing more", async () => {
  const { time, one, other } = await two();
  one.set.by += 60_000;
  expect(one.isOurs()).toBe(false);
  for (const each of [one, other]) each.stop();
  await time.advance(1_000);
});
