import { writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { missed } from "./goals.ts";
import { simulate } from "./simulate.ts";

/** `./dev scale`: measures, prints a table, and fails when a goal of SPECIFICATION.md is missed. */
const { values } = parseArgs({
  options: {
    nodes: { type: "string", default: "5000" },
    profiles: { type: "string", default: "20" },
    /** Minutes that each phase may take. */
    minutes: { type: "string", default: "15" },
    output: { type: "string" },
  },
});

const result = await simulate({
  nodes: Number(values.nodes),
  profiles: Number(values.profiles),
  habits: { seconds: { median: 2, longest: 20 }, failAtFirst: 0.005, flap: 0.001, heartbeatSeconds: 30 },
  phaseMs: Number(values.minutes) * 60_000,
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
if (values.output) await writeFile(values.output, `${JSON.stringify(result, null, 2)}\n`);

const missing = missed(result, true);
for (const miss of missing) process.stderr.write(`missed: ${miss}\n`);
process.exitCode = missing.length > 0 ? 1 : 0;
