import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { SingleFlight } from "./single-flight.ts";

const never = new AbortController().signal;

describe("SingleFlight", () => {
  test("does the work of all who ask at once, once", async () => {
    const flights = new SingleFlight<number>();
    let runs = 0;
    const work = async () => {
      await sleep(5);
      return ++runs;
    };
    expect(await Promise.all([1, 2, 3].map(() => flights.run("k", work, never)))).toEqual([1, 1, 1]);
    expect(await flights.run("k", work, never)).toBe(2);
  });

  test("goes on while anyone waits, and is aborted when nobody does", async () => {
    const flights = new SingleFlight<string>();
    let aborted = false;
    const work = async (signal: AbortSignal) => {
      signal.addEventListener("abort", () => {
        aborted = true;
      });
      await sleep(20, undefined, { signal });
      return "done";
    };
    const [first, second] = [new AbortController(), new AbortController()];
    const one = flights.run("k", work, first.signal);
    const two = flights.run("k", work, second.signal);
    first.abort(new Error("first left"));
    await expect(one).rejects.toThrow("first left");
    expect(aborted).toBe(false);
    expect(await two).toBe("done");

    const alone = flights.run("k", work, second.signal);
    second.abort(new Error("second left"));
    await expect(alone).rejects.toThrow("second left");
    expect(aborted).toBe(true);
  });

  test("tries again for who joined work that failed for another", async () => {
    const flights = new SingleFlight<string>();
    const leader = flights.run(
      "k",
      () => sleep(5).then(() => Promise.reject(new Error("no password"))),
      never,
    );
    const follower = flights.run("k", () => Promise.resolve("had one"), never);
    await expect(leader).rejects.toThrow("no password");
    expect(await follower).toBe("had one");
  });

  test("never does the same work twice at a time, not even behind one that is being aborted", async () => {
    const flights = new SingleFlight<void>();
    let running = 0;
    let most = 0;
    const work = async () => {
      most = Math.max(most, ++running);
      await sleep(10);
      running--;
    };
    const quit = new AbortController();
    const first = flights.run("k", work, quit.signal).catch(() => {});
    quit.abort();
    await Promise.all([first, flights.run("k", work, never)]);
    expect(most).toBe(1);
  });
});
