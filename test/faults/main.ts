import { parseArgs } from "node:util";
import { faultRun } from "./run.ts";

/** `./dev faults`: rounds of random work over the CRI with things going wrong, and the truth compared after each. */
const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "200" },
    round: { type: "string", default: "0" },
    seed: { type: "string" },
    minutes: { type: "string", default: "60" },
  },
});
const stop = new AbortController();
process.once("SIGINT", () => stop.abort());
const seed = values.seed === undefined ? Math.floor(Math.random() * 1e6) : Number(values.seed);
process.stdout.write(`seed ${seed}\n`);
const { rounds, bad } = await faultRun({
  seed,
  first: Number(values.round),
  rounds: Number(values.rounds),
  minutes: Number(values.minutes),
  keepLogs: true,
  say: (line) => void process.stdout.write(`${line}\n`),
  signal: stop.signal,
});
process.stdout.write(`${rounds} rounds, ${bad} with problems (seed ${seed})\n`);
process.exit(bad === 0 ? 0 : 1);
