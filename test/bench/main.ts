import { readFile, writeFile } from "node:fs/promises";
import { cpus, release, totalmem } from "node:os";
import { Argument, Command } from "commander";
import { wholeNumber } from "../dev/numbers.ts";
import { tool } from "../tools/cache.ts";
import { outcome } from "../tools/run.ts";
import { critest } from "./critest.ts";
import { exec } from "./exec.ts";
import { chartOf, type Row, ratioOf, tableOf } from "./figures.ts";
import { type Bench, prepare } from "./machine.ts";
import { many } from "./many.ts";
import { pull } from "./pull.ts";
import { start } from "./start.ts";

/**
 * `./dev bench [NAME…]`: Bulkhead and containerd, same runc, images and CNI, in turns in one run. Figures of one
 * machine say nothing to another: what counts are the ratios.
 */
const benches: Record<string, (bench: Bench) => Promise<Row[]>> = { start, exec, many, pull, critest };

const program = new Command("./dev bench")
  .description("Bulkhead beside containerd, same runc, images and CNI, in turns in one run.")
  .addArgument(
    new Argument("[names...]", "what to measure; all of it if none is named").choices(Object.keys(benches)),
  )
  .option("--rounds <number>", "how often each is measured", wholeNumber(1), 20)
  .option("--pods <numbers>", "of many: at how many pods", podCounts, [0, 40, 100])
  .option("--json <file>", "also write the figures there")
  .option("--svg <file>", "also draw them there")
  .showHelpAfterError()
  .parse();
const names = program.args.length > 0 ? program.args : Object.keys(benches);
const { rounds, pods, json, svg } = program.opts<{
  rounds: number;
  pods: number[];
  json?: string;
  svg?: string;
}>();

function podCounts(text: string): number[] {
  return text.split(",").map(wholeNumber(0));
}

const version = async (argv: string[]): Promise<string> => {
  const { stdout } = await outcome(argv);
  return stdout.split("\n")[0]?.trim() ?? "";
};

const rows: Row[] = [];
{
  await using undo = new AsyncDisposableStack();
  const say = (line: string): void => void process.stderr.write(`  ${line}\n`);
  const bench = await prepare(undo, { rounds, levels: pods }, say);
  for (const name of names) {
    say(`${name} …`);
    rows.push(...(await benches[name]!(bench)));
  }
}

const date = new Date().toISOString().slice(0, 10);
const [load = ""] = (await readFile("/proc/loadavg", "utf8")).split(" ");
const about = {
  date,
  rounds,
  machine: `${cpus().length} cores, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux ${release()}, load ${load} at the end`,
  versions: {
    containerd: await version([tool("containerd"), "--version"]),
    runc: await version([tool("runc"), "--version"]),
    conmon: await version(["conmon", "--version"]),
    node: process.version,
  },
};
process.stdout.write(`${tableOf(rows)}\n`);
if (json !== undefined) {
  const figures = rows.map((row) => ({ ...row, ratio: Math.round(ratioOf(row) * 1000) / 1000 }));
  await writeFile(json, `${JSON.stringify({ ...about, figures }, undefined, 2)}\n`);
}
if (svg !== undefined) await writeFile(svg, chartOf(rows, `Bulkhead beside containerd 2.4.2, ${date}`));
