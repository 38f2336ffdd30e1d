import { expect, test } from "vitest";
import { critestOn, daemonForCritest, differences, leftOut } from "./critest.ts";
import { remains } from "./daemon.ts";

test.each([
  ["one at a time", []],
  ["four at a time", ["-parallel=4"]],
])(
  "critest under gVisor, %s: what does not pass is what SPECIFICATION.md says gVisor cannot do, and nothing stays behind",
  {
    timeout: 600_000,
  },
  async (_, flags) => {
    await using stack = new AsyncDisposableStack();
    const daemon = await daemonForCritest(stack, 92);
    const specs = await critestOn(daemon, ["-runtime-handler=gvisor", ...flags, ...leftOut]);
    expect(await differences(specs, "gvisor")).toEqual([]);
    expect(await remains(daemon)).toEqual([]);
  },
);
