import { spawn } from "node:child_process";
import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { stopCluster } from "../cluster/cluster.ts";
import { listRecords } from "../cluster/record.ts";
import { inherit } from "./logs.ts";

const root = join(import.meta.dirname, "../..");

/** Projects of vitest.config.ts, in the order in which it is cheapest to fail. */
export const projects = ["unit", "host", "vm", "cluster", "lifecycle"] as const;

/**
 * Projects of one lane run one after the other, lanes side by side: what a cluster's tests do most is wait. Host tests
 * share the node's ports and directories and so stay in one lane.
 */
const lanes: readonly (readonly Project[])[] = [
  ["unit", "host", "vm"],
  ["cluster", "lifecycle"],
];

/** One of {@link projects}. */
export type Project = (typeof projects)[number];

type Counts = { passed: number; failed: number; skipped: number };

/** What one run of vitest reports, as far as it is used here. */
type Report = {
  numPassedTests: number;
  numFailedTests: number;
  numPendingTests: number;
  numTodoTests: number;
  testResults: {
    name: string;
    status: string;
    message: string;
    assertionResults: { status: string; fullName: string; failureMessages: string[] }[];
  }[];
};

/**
 * Runs checks and tests: all, or those of some projects, or those whose path matches a filter. It ends by naming what
 * failed once more, since a log may be cut to its end, and with a line of the counts. Returns the exit code.
 */
export const runTests = async (
  wanted: readonly Project[],
  filters: readonly string[],
  signal: AbortSignal,
): Promise<number> => {
  const counts: Counts = { passed: 0, failed: 0, skipped: 0 };
  const failures: string[] = [];
  const retried: string[] = [];
  let code = 0;
  // In CI nobody works with a cluster: one that is there was left by a run that was cut off, half of its processes ended.
  if (process.env.CI) for (const { description } of await listRecords()) await stopCluster(description.name);
  if (wanted.length === projects.length && filters.length === 0) {
    // The gate counts as one. Its unit tests run below, where they are counted one by one.
    code = await inherit([process.execPath, join(root, "test/dev/ok.ts"), "--without-tests"]);
    counts[code === 0 ? "passed" : "failed"] += 1;
    if (code !== 0) failures.push("the gate, npm run ok: see the top of this log");
  }
  const running = lanes
    .map((lane) => lane.filter((project) => wanted.includes(project)))
    .filter((lane) => lane.length > 0)
    .map(async (lane, index) => {
      for (const project of lane) {
        if (signal.aborted) break;
        // Only the first lane writes as it goes: two at once would be unreadable.
        const failed = await runProject(project, filters, index > 0, { counts, failures, retried }, signal);
        code ||= failed;
      }
    });
  await Promise.all(running);
  // Who reads the end of a log reads all names: the more failed, the less is said of each.
  const room = Math.max(300, Math.min(2000, Math.floor(6000 / failures.length)));
  for (const each of retried) process.stdout.write(`PASSED AT THE SECOND TRY ${each.slice(0, 1000)}\n`);
  for (const failure of failures) process.stdout.write(`FAILED ${failure.slice(0, room)}\n`);
  process.stdout.write(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped\n`);
  return code;
};

const runProject = async (
  project: Project,
  filters: readonly string[],
  later: boolean,
  { counts, failures, retried }: { counts: Counts; failures: string[]; retried: string[] },
  signal: AbortSignal,
): Promise<number> => {
  const dir = await mkdtemp(join(tmpdir(), "bulkhead-tests-"));
  try {
    const report = join(dir, "report.json");
    if (later) process.stdout.write(`==== ${project}: runs beside, and is shown when it ends ====\n`);
    const output = later ? await open(join(dir, "output"), "w+") : undefined;
    const code = await new Promise<number>((resolve, reject) => {
      spawn(
        "vitest",
        [
          ...[
            "run",
            "--project",
            project,
            "--reporter=default",
            "--reporter=json",
            `--outputFile.json=${report}`,
          ],
          ...["--passWithNoTests", ...filters],
        ],
        { cwd: root, stdio: ["inherit", output?.fd ?? "inherit", output?.fd ?? "inherit"] },
      )
        .on("error", reject)
        .on("close", (status) => resolve(status ?? 1));
    }).finally(() => output?.close());
    if (later)
      process.stdout.write(`\n==== ${project} ====\n${await readFile(join(dir, "output"), "utf8")}\n`);
    const text = await readFile(report, "utf8").catch(() => undefined);
    if (text === undefined) {
      // It died before it could count: that is a failure, whatever it was.
      if (!signal.aborted) {
        counts.failed += 1;
        failures.push(`vitest of ${project} ended before it could report`);
      }
      return code || 1;
    }
    const result = JSON.parse(text) as Report;
    counts.passed += result.numPassedTests;
    counts.failed += result.numFailedTests + result.testResults.filter(failsOutsideTests).length;
    failures.push(...failuresOf(project, result));
    retried.push(...toldOf(project, result, "passed"));
    counts.skipped += result.numPendingTests + result.numTodoTests;
    return code;
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
};

/** A file that fails before its first test or after its last, in what all of them share: no test counts that. */
const failsOutsideTests = ({ status, assertionResults }: Report["testResults"][number]): boolean =>
  status === "failed" && assertionResults.every((test) => test.status !== "failed");

const failuresOf = (project: Project, result: Report): string[] => [
  ...result.testResults
    .filter(failsOutsideTests)
    .map(({ name, message }) => `${project} ${relative(root, name)}: ${message}`),
  ...toldOf(project, result, "failed"),
];

/** What tests that ended so say of their failures; one that passed had them at its first try. */
const toldOf = (project: Project, { testResults }: Report, ended: "failed" | "passed"): string[] =>
  testResults.flatMap(({ name, assertionResults }) =>
    assertionResults
      .filter(({ status, failureMessages }) => status === ended && failureMessages.length > 0)
      .map(
        (test) => `${project} ${relative(root, name)} > ${test.fullName}: ${test.failureMessages.join("\n")}`,
      ),
  );
