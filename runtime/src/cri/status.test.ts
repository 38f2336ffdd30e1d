import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { status } from "@grpc/grpc-js";
import { expect, test } from "vitest";
import { toStatus } from "./status.ts";

test("where undoing fails too, the answer is what failed first, with its code, and then the other", async () => {
  const failing = async (): Promise<void> => {
    await using undo = new AsyncDisposableStack();
    undo.defer(() => {
      throw new Error("the disk is busy");
    });
    throw new RuntimeError("resource-exhausted", "RegistryUnavailable: nothing came");
  };
  const error = await failing().catch((thrown: unknown) => thrown);
  expect(toStatus(error)).toEqual({
    code: status.RESOURCE_EXHAUSTED,
    details: "RegistryUnavailable: nothing came; taking it back failed too: the disk is busy",
  });
});
