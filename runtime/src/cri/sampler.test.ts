import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import type { Usage } from "../handler/handler.ts";
import { Sampler } from "./sampler.ts";

const usage = { cpuNanos: 1n, timestamp: 1n } as Usage;

test("what does not come in time holds nobody up, is not waited for again, and counts as soon as it comes", async () => {
  const sampler = new Sampler(300);
  const answer = Promise.withResolvers<Usage>();
  let readings = 0;
  const read = () => {
    readings++;
    return answer.promise;
  };
  expect(await sampler.of("hung", read)).toMatchObject({ usage: undefined });
  const again = sampler.of("hung", read).then(() => "at once");
  expect(await Promise.race([again, sleep(100)])).toBe("at once");
  expect(readings).toBe(1);
  expect(await sampler.of("other", async () => usage)).toMatchObject({ usage });
  answer.resolve(usage);
  await expect.poll(async () => (await sampler.of("hung", read)).usage).toBe(usage);
});
