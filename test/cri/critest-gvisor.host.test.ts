import { expect, test } from "vitest";
import { critestOn, daemonForCritest, differences, leftOut } from "./critest.ts";
import { remains } from "./daemon.ts";

test("critest under gVisor: what does not pass is what SPECIFICATION.md says gVisor cannot do, and nothing stays behind", {
  timeout: 600_000,
}, async () => {
  await using stack = new AsyncDisposableStack();
  const daemon = await daemonForCritest(stack, 92);
  const specs = await critestOn(daemon, ["-runtime-handler=gvisor", ...leftOut]);
  expect(await differences(specs, "gvisor")).toEqual([]);
  expect(await remains(daemon)).toEqual([]);
});
