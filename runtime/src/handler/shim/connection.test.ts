import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { expect, test } from "vitest";
import { withCode } from "./connection.ts";

const told = (message: string): RuntimeError =>
  withCode(new RuntimeError("unknown", message)) as RuntimeError;

// As runtime-rs 4.1.0 said it where /dev/vhost-vsock was missing; n of its lines is a backslash and an n.
const failed = String.raw`Create: Others("failed to handle message start sandbox in task handler\n\nCaused by:\n    0: start vm\n    1: failed to open /dev/vhost-vsock, try to run modprobe vhost_vsock.\n    2: No such file or directory (os error 2)\n\nStack backtrace:\n   0: <unknown>\n   1: <unknown>")`;

test("a failure of runtime-rs is told as its causes, without the stack", () => {
  expect(told(failed)).toMatchObject({
    code: "unknown",
    message:
      "Create: failed to handle message start sandbox in task handler: start vm: failed to open /dev/vhost-vsock, try to run modprobe vhost_vsock.: No such file or directory (os error 2)",
  });
  expect(told(String.raw`Others("one\n\nCaused by:\n    two")`).message).toBe("one: two");
  const guestSilent = String.raw`Create: Others("start\n\nCaused by:\n    0: connect to address \"vsock://40\"\n    1: not in time, last_err=Some(cid: 40\n\n       Caused by:\n           ETIMEDOUT\n\n       Stack backtrace:\n          0: <unknown>)\n\nStack backtrace:\n   0: <unknown>")`;
  expect(told(guestSilent).message).toBe(
    'Create: start: connect to address "vsock://40": not in time, last_err=Some(cid: 40: ETIMEDOUT',
  );
  expect(told("runc create failed").message).toBe("runc create failed");
});

test("a task that is not there is told from what went wrong", () => {
  expect(
    told(String.raw`State: Others("state process\n\nCaused by:\n    failed to find container x")`).code,
  ).toBe("not-found");
});
