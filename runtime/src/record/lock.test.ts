import { expect, test } from "vitest";
import { Locks } from "./lock.ts";

const never = new AbortController().signal;

test("work for one id runs one at a time, in the order of asking", async () => {
  const locks = new Locks();
  const order: string[] = [];
  const slow = (name: string) => async () => {
    order.push(`${name} in`);
    await new Promise((resolve) => setTimeout(resolve, 5));
    order.push(`${name} out`);
  };
  await Promise.all([locks.run("a", never, slow("1")), locks.run("a", never, slow("2"))]);
  expect(order).toEqual(["1 in", "1 out", "2 in", "2 out"]);
});

test("other ids do not wait", async () => {
  const locks = new Locks();
  const gate = Promise.withResolvers<void>();
  const held = locks.run("a", never, () => gate.promise);
  expect(await locks.run("b", never, async () => "through")).toBe("through");
  gate.resolve();
  await held;
});

test("one that gives up waiting does not let the next one in too early", async () => {
  const locks = new Locks();
  const gate = Promise.withResolvers<void>();
  const held = locks.run("a", never, () => gate.promise);
  const leaving = new AbortController();
  const left = locks.run("a", leaving.signal, async () => {});
  leaving.abort();
  await expect(left).rejects.toThrow();
  let entered = false;
  const third = locks.run("a", never, async () => {
    entered = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 5));
  expect(entered).toBe(false);
  gate.resolve();
  await Promise.all([held, third]);
  expect(entered).toBe(true);
});

test("a failure frees the lock", async () => {
  const locks = new Locks();
  await expect(locks.run("a", never, () => Promise.reject(new Error("x")))).rejects.toThrow("x");
  expect(await locks.run("a", never, async () => 1)).toBe(1);
});
