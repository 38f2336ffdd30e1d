import { expect, test } from "vitest";
import { limitsOf } from "./guest.ts";

test("a virtual machine's containers have no limit of swap, whatever the node's kernel counts; others have", () => {
  const host = { swapAccounting: true } as Parameters<typeof limitsOf>[1];
  const pod = (wall: string) => ({ handler: { kind: "shim", wall } }) as Parameters<typeof limitsOf>[0];
  expect(limitsOf(pod("vm"), host).swapAccounting).toBe(false);
  expect(limitsOf(pod("namespaces"), host).swapAccounting).toBe(true);
});
