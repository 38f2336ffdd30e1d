import { expect, test } from "vitest";
import { errorSaid } from "./shim-log.ts";

const at = 'time="2026-11-28T13:40:48.142109125Z"';

test.each<[title: string, line: string, said: string | undefined]>([
  [
    "of QEMU, by Kata's Go shim",
    `${at} level=error msg="qemu-system-x86_64: unable to map backing store for guest RAM: Cannot allocate memory" name=containerd-shim-v2 pid=953 source=virtcontainers/hypervisor`,
    "qemu-system-x86_64: unable to map backing store for guest RAM: Cannot allocate memory",
  ],
  [
    "with the error behind it",
    `${at} level=fatal msg="cannot start \\"guest\\"" error="exit status 1" pid=1`,
    'cannot start "guest": exit status 1',
  ],
  ["of one word", "level=panic msg=stuck", "stuck"],
  [
    "with what a terminal would obey, and quotes that are Go's own",
    `${at} level=error msg="\\x1b[2J\\agone"`,
    "\\x1b[2J\\agone",
  ],
  ["with control characters in JSON's quotes", `${at} level=error msg="a\\u001b[2J\\r\\nb"`, "a [2J b"],
  ["whose quote does not end", `${at} level=error msg="cut`, "cut"],
  [
    "of a lower level",
    `${at} level=warning msg="QEMU exited with an error" error="exit status 1"`,
    undefined,
  ],
  ["that only quotes an error", `${at} level=info msg="time=x level=error msg=no"`, undefined],
  ["that Kata calls its own mistake", `${at} level=error msg="trace called before" type=bug`, undefined],
  ["that says nothing", `${at} level=error`, undefined],
  ["that is no logrus", "panic: runtime error", undefined],
])("a line %s", (_title, line, said) => {
  expect(errorSaid(line)).toBe(said);
});

test("of a long line the beginning is kept", () => {
  expect(errorSaid(`level=error msg="${"x".repeat(8000)}"`)).toBe("x".repeat(400));
});
