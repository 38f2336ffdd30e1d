import { expect, test } from "vitest";
import { outputIn } from "./own-output.ts";

test("what a container wrote is put together from its log's lines, and what went to standard error left out", () => {
  const at = "2026-11-28T04:44:08.123456789Z";
  const log = [
    `${at} stdout F version=Linux version 6`,
    `${at} stderr F dmesg: not permitted`,
    `${at} stdout P devices=,/dev/null`,
    `${at} stdout P ,/dev/zero`,
    `${at} stdout F `,
    `${at} stdout F a=b c`,
    "no line of a log",
    "",
  ].join("\n");
  expect(outputIn(log)).toBe("version=Linux version 6\ndevices=,/dev/null,/dev/zero\na=b c\n");
});
