import { expect, test } from "vitest";
import type { WebSocket } from "ws";
import { Unread } from "../unread.ts";
import { Input } from "./input.ts";

/** Stands in for a connection: says whether it was told to wait. */
const waiting = () => ({
  isPaused: false,
  pause() {
    this.isPaused = true;
  },
  resume() {
    this.isPaused = false;
  },
});

const unreadOf = (count: number, bytes: number) => {
  const socket = waiting();
  const unread = new Unread().client();
  const inputs = Array.from({ length: count }, () => new Input(socket as unknown as WebSocket, unread));
  const paused = inputs.findIndex((input) => {
    input.receive(Buffer.alloc(bytes));
    return socket.isPaused;
  });
  return { socket, unread, inputs, paused };
};

test("a client waits when its channels hold 4 MiB together, and goes on when one of them is read", async () => {
  const { socket, unread, inputs, paused } = unreadOf(10, 900_000);
  expect(paused).toBe(4);
  inputs[0]?.resume();
  await expect.poll(() => socket.isPaused).toBe(false);
  for (const input of inputs) input.resume();
  await expect.poll(() => unread.held).toBe(0);
});

test("a client waits for one channel of more than 1 MiB, until it is read or given up", async () => {
  const { socket, unread, inputs } = unreadOf(1, 1_100_000);
  expect(socket.isPaused).toBe(true);
  inputs[0]?.destroy();
  await expect.poll(() => socket.isPaused).toBe(false);
  expect(unread.held).toBe(0);
});
