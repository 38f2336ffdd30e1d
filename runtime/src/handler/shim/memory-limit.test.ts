import { expect, test } from "vitest";
import { holdMemoryLimit } from "./memory-limit.ts";
import { parseMemoryUsage } from "./runsc-control.ts";

/** A container that uses these amounts, one at each look, and ends after the last. */
const watch = async (limit: number, looks: (number | Error)[], sandbox?: bigint) => {
  const done = Promise.withResolvers<void>();
  let killed = 0;
  let asked = 0;
  await holdMemoryLimit(
    {
      limit: () => {
        if (looks.length === 0) done.resolve();
        return limit;
      },
      sandboxUsage: () => {
        if (sandbox !== undefined) looks.shift();
        return sandbox;
      },
      usage: async () => {
        asked += 1;
        const look = looks.shift() ?? 0;
        if (look instanceof Error) throw look;
        return look;
      },
      kill: async () => {
        killed += 1;
      },
      ended: done.promise,
    },
    AbortSignal.timeout(25_000),
    1,
  );
  return { killed, asked };
};

test("a container over its memory limit at two looks is killed, once", async () => {
  expect(await watch(100, [50, 101, 102, 103])).toEqual({ killed: 1, asked: 3 });
});

test("one look over the limit, or a sandbox that does not answer, kills nothing", async () => {
  expect((await watch(100, [101, 100, 101, new Error("busy"), 101, 99])).killed).toBe(0);
});

test("a container without a limit, or whose whole sandbox is below it, is not asked for", async () => {
  expect(await watch(100, [500, 500, 500], 100n)).toEqual({ killed: 0, asked: 0 });
  const none = AbortSignal.timeout(50);
  const never = { sandboxUsage: () => undefined, usage: () => Promise.reject(new Error("asked")) };
  await holdMemoryLimit(
    {
      ...never,
      limit: () => 0,
      kill: () => Promise.reject(new Error("killed")),
      ended: new Promise(() => {}),
    },
    none,
    1,
  );
});

test("parseMemoryUsage() reads runsc's answer, and throws what the sandbox complains of", () => {
  const of = (usage: object): string =>
    JSON.stringify({ success: true, err: "", result: { event: { data: { memory: { usage } } } } });
  expect(parseMemoryUsage(of({ limit: 0, usage: 4096, failcnt: 0 }))).toBe(4096);
  expect(parseMemoryUsage(of({ limit: 0, failcnt: 0 }))).toBe(0);
  expect(() => parseMemoryUsage('{"success":false,"err":"no container","result":null}')).toThrow(
    "no container",
  );
});
