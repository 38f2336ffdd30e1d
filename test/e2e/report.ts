/** What came of a spec: its whole name, and why it failed or was skipped. */
export type Result = {
  name: string;
  state: "passed" | "failed" | "skipped";
  message: string;
  seconds: number;
};

/** The part of ginkgo's JSON report that we read (github.com/onsi/ginkgo/v2/types, Report). */
type Report = {
  SpecReports:
    | {
        State: string;
        LeafNodeType: string;
        LeafNodeText: string;
        ContainerHierarchyTexts?: string[] | null;
        RunTime: number;
        Failure?: { Message?: string };
      }[]
    | null;
}[];

/**
 * The specs of a report that were selected. ginkgo reports the others as skipped too, without a word of why; those
 * that skip themselves say it.
 */
export const resultsOf = (text: string): Result[] =>
  (JSON.parse(text) as Report)
    .flatMap(({ SpecReports }) => SpecReports ?? [])
    .flatMap((spec): Result[] => {
      const message = spec.Failure?.Message ?? "";
      const state = spec.State === "passed" || spec.State === "skipped" ? spec.State : "failed";
      // A suite that cannot begin fails in a node of its own.
      if (spec.LeafNodeType !== "It" && state !== "failed") return [];
      if (state === "skipped" && message === "") return [];
      const name = [...(spec.ContainerHierarchyTexts ?? []), spec.LeafNodeText || spec.LeafNodeType].join(
        " ",
      );
      return [{ name, state, message, seconds: spec.RunTime / 1e9 }];
    });

/** The results as lines for people: counts, then every spec that did not pass with its reason. */
export const summary = (results: readonly Result[]): string => {
  const of = (state: Result["state"]): Result[] => results.filter((each) => each.state === state);
  const told = (title: string, each: Result): string =>
    `${title}: ${each.name}\n    ${each.message.split("\n").slice(0, 3).join("\n    ")}`;
  return [
    ...of("failed").map((each) => told("FAILED", each)),
    ...of("skipped").map((each) => told("skipped", each)),
    `${of("passed").length} passed, ${of("failed").length} failed, ${of("skipped").length} skipped`,
    "",
  ].join("\n");
};
