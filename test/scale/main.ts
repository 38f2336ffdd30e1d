import { writeFile } from "node:fs/promises";
import { Command } from "commander";
import { wholeNumber } from "../dev/numbers.ts";
import { missed } from "./goals.ts";
import { simulate } from "./simulate.ts";

/** `./dev scale`: measures, prints a table, and fails when a goal of SPECIFICATION.md is missed. */
const { nodes, profiles, minutes, output } = new Command("./dev scale")
  .description("The real API server and operator with thousands of nodes, whose agents are a fake.")
  .option("--nodes <number>", "how many nodes", wholeNumber(1), 5000)
  .option("--profiles <number>", "how many profiles", wholeNumber(1), 20)
  .option("--minutes <number>", "as long each phase may take", wholeNumber(1), 15)
  .option("--output <file>", "also write the figures there, as JSON")
  .showHelpAfterError()
  .parse()
  .opts<{ nodes: number; profiles: number; minutes: number; output?: string }>();

const result = await simulate({
  nodes,
  profiles,
  habits: { seconds: { median: 2, longest: 20 }, failAtFirst: 0.005, flap: 0.001, heartbeatSeconds: 30 },
  phaseMs: minutes * 60_000,
  quietMs: 60_000,
  say: (text) => void process.stderr.write(`${text}\n`),
});
const { phases, quiet, operator, largestBytes } = result;
const perNode = (requests: number): string => (requests / result.nodes).toFixed(2);
process.stdout.write(
  [
    "| phase | written s | Ready s | after the last answer s | requests per node | writes of nodes per node | CPU s | MiB |",
    "|---|---|---|---|---|---|---|---|",
    ...phases.map((phase) => {
      const { writtenSeconds, readySeconds, afterLastAnswerSeconds } = phase;
      const times = [writtenSeconds, readySeconds, afterLastAnswerSeconds].map((s) => s.toFixed(1));
      const costs = [perNode(phase.requests), perNode(phase.nodeWrites), phase.cpuSeconds.toFixed(1)];
      return `| ${[phase.phase, ...times, ...costs, Math.round(phase.megabytes)].join(" | ")} |`;
    }),
    "",
    `${quiet.seconds} quiet seconds: ${quiet.heartbeats} heartbeats, ${quiet.sameAgain} reports that say the same, ${quiet.flaps} that flap, ${quiet.kubelets} of kubelets cost ${quiet.requests} requests (the Lease's among them), ${quiet.writes} writes, ${quiet.cpuSeconds.toFixed(2)} s of CPU.`,
    `Operator: ${operator.peakMegabytes} MiB at most, ${operator.cpuSeconds} s of CPU in all. Largest objects: NodeRuntime ${largestBytes.NodeRuntime} bytes, RuntimeProfile ${largestBytes.RuntimeProfile} bytes.`,
    "",
  ].join("\n"),
);
if (output) await writeFile(output, `${JSON.stringify(result, null, 2)}\n`);

const missing = missed(result, true);
for (const miss of missing) process.stderr.write(`missed: ${miss}\n`);
process.exitCode = missing.length > 0 ? 1 : 0;
