import { expect, test } from "vitest";
import { parseRunscMetrics } from "./runsc-metrics.ts";

const answer = (data: unknown) =>
  JSON.stringify({ success: true, err: "", result: { snapshot: { when: "2026-11-27T21:27:24Z", data } } });
const of = (name: string, val?: object, labels?: object) => ({
  metric: { name, type: 2, help: "h" },
  val,
  labels,
});

test("a sandbox's figures, those by system call summed up", () => {
  const text = answer([
    of("fs_opens", { int: 2 }),
    of("netstack_tcp_current_open"),
    of("unimplemented_syscalls", { int: 1 }, { sysno: "334" }),
    of("unimplemented_syscalls", { int: 4 }, { sysno: "435" }),
  ]);
  expect(Object.fromEntries(parseRunscMetrics(text))).toEqual({
    fs_opens: 2,
    netstack_tcp_current_open: 0,
    unimplemented_syscalls: 5,
  });
});

test.each([
  ["a name that is none of gVisor's", of('x{a="b"} 1\n', { int: 1 })],
  ["a name of an object's prototype", of("constructor", { int: 1 })],
  ["a number that is none", of("fs_opens", { float: -1 })],
])("%s is left out", (_what, data) => {
  expect(parseRunscMetrics(answer([data])).size).toBe(0);
});

test("no data, an error and nonsense", () => {
  expect(parseRunscMetrics(answer(null)).size).toBe(0);
  expect(() => parseRunscMetrics('{"success":false,"err":"no such method"}')).toThrow(/no such method/);
  expect(() => parseRunscMetrics(answer([{ metric: { name: 7 } }]))).toThrow();
});
