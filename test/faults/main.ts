import { Command, Option } from "commander";
import { wholeNumber } from "../dev/numbers.ts";
import { faultRun } from "./run.ts";

/** `./dev faults`: rounds of random work over the CRI with things going wrong, and the truth compared after each. */
const options = new Command("./dev faults")
  .description("Random work with things going wrong, compared with the truth after each round.")
  .option("--rounds <number>", "how many rounds", wholeNumber(1), 200)
  .option("--round <number>", "the first one: with the seed, it repeats a round", wholeNumber(0), 0)
  .addOption(
    new Option("--seed <number>", "what the rounds are made of")
      .argParser(wholeNumber(0))
      .default(Math.floor(Math.random() * 1e6), "by chance"),
  )
  .option("--minutes <number>", "no round begins after so many", wholeNumber(1), 60)
  .showHelpAfterError()
  .parse()
  .opts<{ rounds: number; round: number; seed: number; minutes: number }>();
const { seed } = options;
const stop = new AbortController();
process.once("SIGINT", () => stop.abort());
process.stdout.write(`seed ${seed}\n`);
const { rounds, bad } = await faultRun({
  seed,
  first: options.round,
  rounds: options.rounds,
  minutes: options.minutes,
  keepLogs: true,
  say: (line) => void process.stdout.write(`${line}\n`),
  signal: stop.signal,
});
process.stdout.write(`${rounds} rounds, ${bad} with problems (seed ${seed})\n`);
process.exit(bad === 0 ? 0 : 1);
