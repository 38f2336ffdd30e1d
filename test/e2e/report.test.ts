import { expect, test } from "vitest";
import { resultsOf, summary } from "./report.ts";

const spec = (State: string, LeafNodeText: string, Message?: string) => ({
  State,
  LeafNodeType: "It",
  LeafNodeText,
  ContainerHierarchyTexts: ["[sig-node] Pods"],
  RunTime: 1_500_000_000,
  ...(Message === undefined ? {} : { Failure: { Message } }),
});
const results = resultsOf(
  JSON.stringify([
    {
      SpecReports: [
        spec("passed", "start"),
        spec("timedout", "end", "too long"),
        spec("skipped", "not selected"),
        spec("skipped", "AppArmor", "not here"),
        { ...spec("passed", ""), LeafNodeType: "ReportAfterSuite" },
      ],
    },
    { SpecReports: null },
  ]),
);

test("results: what was not selected is left out, what ended in any other way than passing failed", () => {
  expect(results).toEqual([
    { name: "[sig-node] Pods start", state: "passed", message: "", seconds: 1.5 },
    { name: "[sig-node] Pods end", state: "failed", message: "too long", seconds: 1.5 },
    { name: "[sig-node] Pods AppArmor", state: "skipped", message: "not here", seconds: 1.5 },
  ]);
});

test("a suite that cannot begin has failed", () => {
  const broken = {
    ...spec("failed", "", "no cluster"),
    LeafNodeType: "BeforeSuite",
    ContainerHierarchyTexts: null,
  };
  expect(resultsOf(JSON.stringify([{ SpecReports: [broken] }]))).toMatchObject([
    { name: "BeforeSuite", state: "failed", message: "no cluster" },
  ]);
});

test("the summary names what did not pass and why, and ends with the counts", () => {
  expect(summary(results)).toBe(
    "FAILED: [sig-node] Pods end\n    too long\nskipped: [sig-node] Pods AppArmor\n    not here\n1 passed, 1 failed, 1 skipped\n",
  );
});
