import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { portForwardRunsc } from "./port-forward.ts";

/* By fakes of runsc; test/pods has a real one. */

let dir: string;
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "bh-pf-"));
});
afterAll(() => rmSync(dir, { recursive: true }));

const fake = (name: string, script: string) => {
  const binary = join(dir, name);
  writeFileSync(binary, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  return (pod: string, patienceMs: number, signal = new AbortController().signal) =>
    portForwardRunsc({ binary, root: dir }, dir, pod, 80, signal, patienceMs);
};
/** Programs that it has started and that run still. */
const runs = (log: string): number =>
  readFileSync(log, "utf8")
    .split("\n")
    .filter((pid) => {
      try {
        return pid !== "" && process.kill(Number(pid), 0);
      } catch {
        return false;
      }
    }).length;

test("a sandbox that hangs is given up, with its runsc, and has eight at a time; another pod has its own turns", async () => {
  const log = join(dir, "hanging");
  writeFileSync(log, "");
  const forward = fake("hang", `echo $$ >> ${log}; exec sleep 60`);
  const all = Array.from({ length: 20 }, () => forward("a", 2_000).catch((error) => error.message));
  await expect.poll(() => runs(log)).toBe(8);
  await sleep(100);
  expect(runs(log)).toBe(8);
  const other = forward("b", 1_000).catch((error) => error.message);
  await expect.poll(() => runs(log)).toBe(9);
  const said = new Set([...(await Promise.all(all)), await other]);
  expect([...said]).toEqual(["Cannot connect to port 80 of the pod: its sandbox did not answer in time"]);
  await expect.poll(() => runs(log)).toBe(0);
});

test("the node makes 32 at a time, whatever pods they are of", async () => {
  const log = join(dir, "many.log");
  writeFileSync(log, "");
  const forward = fake("many", `echo $$ >> ${log}; exec sleep 60`);
  const all = Array.from({ length: 40 }, (_, n) => forward(`p${n}`, 3_000).catch(() => {}));
  await expect.poll(() => runs(log), { timeout: 2_500 }).toBe(32);
  await sleep(100);
  expect(runs(log)).toBe(32);
  await Promise.all(all);
});

test("a runsc that says it has connected and has not is given up, and at once when the client goes", async () => {
  const forward = fake("lies", "exit 0");
  await expect(forward("c", 300)).rejects.toMatchObject({ code: "deadline-exceeded" });
  const client = new AbortController();
  const waits = forward("c", 30_000, client.signal);
  setTimeout(() => client.abort(new Error("the client has gone")), 100);
  await expect(waits).rejects.toThrow("the client has gone");
});
