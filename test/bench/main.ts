import { readFile, writeFile } from "node:fs/promises";
import { cpus, release, totalmem } from "node:os";
import { parseArgs } from "node:util";
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

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: "string", default: "20" },
    pods: { type: "string", default: "0,40,100" },
    json: { type: "string" },
    svg: { type: "string" },
    list: { type: "boolean", default: false },
  },
});
if (values.list) {
  process.stdout.write(`${Object.keys(benches).join("\n")}\n`);
  process.exit(0);
}
const names = positionals.length > 0 ? positionals : Object.keys(benches);
const unknown = names.find((name) => benches[name] === undefined);
if (unknown !== undefined) {
  process.stderr.write(`Cannot find benchmark "${unknown}" in ${Object.keys(benches).join(", ")}\n`);
  process.exit(2);
}

const version = async (argv: string[]): Promise<string> => {
  const { stdout } = await outcome(argv);
  return stdout.split("\n")[0]?.trim() ?? "";
};

const rows: Row[] = [];
{
  await using undo = new AsyncDisposableStack();
  const say = (line: string): void => void process.stderr.write(`  ${line}\n`);
  const bench = await prepare(
    undo,
    { rounds: Number(values.rounds), levels: values.pods.split(",").map(Number) },
    say,
  );
  for (const name of names) {
    say(`${name} …`);
    rows.push(...(await benches[name]!(bench)));
  }
}

const date = new Date().toISOString().slice(0, 10);
const [load = ""] = (await readFile("/proc/loadavg", "utf8")).split(" ");
const about = {
  date,
  rounds: Number(values.rounds),
  machine: `${cpus().length} cores, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux ${release()}, load ${load} at the end`,
  versions: {
    containerd: await version([tool("containerd"), "--version"]),
    runc: await version([tool("runc"), "--version"]),
    conmon: await version(["conmon", "--version"]),
    node: process.version,
  },
};
process.stdout.write(`${tableOf(rows)}\n`);
if (values.json !== undefined) {
  const figures = rows.map((row) => ({ ...row, ratio: Math.round(ratioOf(row) * 1000) / 1000 }));
  await writeFile(values.json, `${JSON.stringify({ ...about, figures }, undefined, 2)}\n`);
}
if (values.svg !== undefined)
  await writeFile(values.svg, chartOf(rows, `Bulkhead beside containerd 2.4.2, ${date}`));
