import { expect, test } from "vitest";
import { faultRun } from "./run.ts";

// The short form of `./dev faults`: the same rounds every time, so that a failure here is found again.
test("nothing is lost and nothing leaked over rounds of random work with faults", async () => {
  const said: string[] = [];
  const { bad } = await faultRun({
    ...{ seed: 3, first: 0, rounds: 6, minutes: 1, keepLogs: false },
    say: (line) => void said.push(line),
    signal: new AbortController().signal,
  });
  expect(bad, said.join("\n")).toBe(0);
}, 240_000);
