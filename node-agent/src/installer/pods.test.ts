import { expect, test } from "vitest";
import { criosHandler } from "./pods.ts";

test("a pod's handler is read from what CRI-O gave it, and from nothing else", () => {
  const info = (annotations: unknown): string => JSON.stringify({ pid: 1, runtimeSpec: { annotations } });
  expect(criosHandler(info({ "io.kubernetes.cri-o.RuntimeHandler": "walled" }))).toBe("walled");
  expect(criosHandler(info({ "io.kubernetes.cri-o.RuntimeHandler": 3 }))).toBe("");
  expect(criosHandler(info({ "io.kubernetes.cri-o.Name": "walled" }))).toBe("");
  expect(criosHandler('{"pid":1}')).toBe("");
  expect(criosHandler("")).toBe("");
});
