import { Signal } from "@bulkhead/lib/gen/cri_pb.js";
import { expect, test } from "vitest";
import { criStopSignal, signalNumber, stopSignalOf } from "./stop-signal.ts";

test.each([
  ["SIGTERM", 15],
  ["quit", 3],
  ["9", 9],
  ["SIGRTMIN+3", 37],
  ["SIGRTMAX-1", 63],
  ["SIGNOPE", undefined],
  ["65", undefined],
  ["SIGRTMIN+99", undefined],
])("%s is signal %s", (text, number) => {
  expect(signalNumber(text)).toBe(number);
});

test("CRI's stop signal wins over the image's, which wins over SIGTERM", () => {
  expect(stopSignalOf(Signal.SIGRTMINPLUS3, "SIGQUIT")).toBe(37);
  expect(stopSignalOf(Signal.RUNTIME_DEFAULT, "SIGQUIT")).toBe(3);
  expect(stopSignalOf(Signal.RUNTIME_DEFAULT, "")).toBe(15);
});

test("a number goes back to CRI's enumeration", () => {
  expect(criStopSignal(15)).toBe(Signal.SIGTERM);
  expect(criStopSignal(37)).toBe(Signal.SIGRTMINPLUS3);
});
