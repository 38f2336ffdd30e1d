import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { cpus } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ensureTestImages } from "../images/build.ts";
import { startRegistry } from "../images/registry.ts";
import { run } from "../tools/run.ts";
import { type Engine, type Machine, startBulkhead, startContainerd } from "./engines.ts";
import { pss } from "./memory.ts";
import { endPod, pull, startPod } from "./pod.ts";

/**
 * `./dev bench start`: the same pod under containerd and under our runc handler, in turns in one run, over the CRI.
 * Figures of one machine say nothing to another: what counts are the ratios.
 */
const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "20" },
    pods: { type: "string", default: "0,10,40" },
    json: { type: "string" },
  },
});
const rounds = Number(values.rounds);
const levels = values.pods.split(",").map(Number);

const quantile = (values: number[], q: number): number => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN;
};

type Times = {
  start: number[];
  sandbox: number[];
  create: number[];
  startContainer: number[];
  stop: number[];
};
const noTimes = (): Times => ({ start: [], sandbox: [], create: [], startContainer: [], stop: [] });

async function batch(engine: Engine, image: string, concurrency: number, times: Times): Promise<void> {
  await Promise.all(
    Array.from({ length: concurrency }, async () => {
      const began = performance.now();
      const { pod, milliseconds } = await startPod(engine, image);
      times.start.push(performance.now() - began);
      times.sandbox.push(milliseconds.sandbox);
      times.create.push(milliseconds.create);
      times.startContainer.push(milliseconds.start);
      const ending = performance.now();
      await endPod(engine, pod);
      times.stop.push(performance.now() - ending);
    }),
  );
}

await using undo = new AsyncDisposableStack();
const dir = await mkdtemp("/var/tmp/bh-bench-");
undo.defer(() => rm(dir, { recursive: true, force: true }));
undo.defer(() => rm("/tmp/bh-bench-logs", { recursive: true, force: true }));
const registry = await startRegistry({ dir: join(dir, "registry"), address: "127.0.0.1" });
undo.defer(() => registry.stop());
await ensureTestImages(registry.url, ["bulkhead/test:1", "pause:3.10"]);
const host = new URL(registry.url).host;

const bridge = "bhbench0";
const cniConf = join(dir, "net.d");
await mkdir(cniConf);
await writeFile(
  join(cniConf, "10-bench.conflist"),
  JSON.stringify({
    cniVersion: "1.0.0",
    name: "bench",
    plugins: [
      {
        type: "bridge",
        bridge,
        isGateway: true,
        ipMasq: true,
        ipam: { type: "host-local", dataDir: join(dir, "ipam"), ranges: [[{ subnet: "10.231.0.0/16" }]] },
      },
      { type: "portmap", capabilities: { portMappings: true } },
    ],
  }),
);
undo.defer(async () => {
  await run(["ip", "link", "delete", bridge]).catch(() => "");
});

const machine: Machine = { dir, registry: host, cniConf };
const engines: Engine[] = [];
for (const start of [startContainerd, startBulkhead]) {
  const engine = await start(machine);
  undo.defer(() => engine.stop());
  engines.push(engine);
}
const images = new Map<Engine, string>();
for (const engine of engines) images.set(engine, await pull(engine, `${host}/bulkhead/test:1`));
const image = (engine: Engine): string => images.get(engine) ?? "";

const times = new Map<string, Times>();
for (const concurrency of [1, 8]) {
  for (const engine of engines) {
    times.set(`${engine.name}-${concurrency}`, noTimes());
    await batch(engine, image(engine), 1, noTimes());
  }
  for (let round = 0; round < rounds; round++) {
    for (const engine of engines)
      await batch(
        engine,
        image(engine),
        concurrency,
        times.get(`${engine.name}-${concurrency}`) ?? noTimes(),
      );
  }
}

const memory: Record<string, Record<number, { daemon: number; others: number }>> = {};
for (const engine of engines) {
  const table: Record<number, { daemon: number; others: number }> = {};
  memory[engine.name] = table;
  const pods: string[] = [];
  for (const level of levels) {
    while (pods.length < level) pods.push((await startPod(engine, image(engine))).pod);
    await new Promise((resolve) => setTimeout(resolve, 2000));
    table[level] = await pss(engine);
  }
  for (const pod of pods) await endPod(engine, pod);
}

const ms = (value: number): string => value.toFixed(1).padStart(9);
const lines = ["", "                            containerd  bulkhead   ratio"];
const results: Record<string, number> = {};
const row = (name: string, theirs: number, ours: number): void => {
  results[name] = ours / theirs;
  lines.push(`${name.padEnd(28)}${ms(theirs)} ${ms(ours)}  ${(ours / theirs).toFixed(2)}`);
};
for (const concurrency of [1, 8]) {
  const [theirs, ours] = ["containerd", "bulkhead"].map(
    (name) => times.get(`${name}-${concurrency}`) ?? noTimes(),
  );
  if (!theirs || !ours) continue;
  for (const q of [0.5, 0.99]) {
    for (const phase of ["start", "sandbox", "create", "startContainer", "stop"] as const)
      row(`${phase} p${q * 100} ×${concurrency}, ms`, quantile(theirs[phase], q), quantile(ours[phase], q));
  }
}
const top = Math.max(...levels);
const perPod = (name: string): number => {
  const table = memory[name] ?? {};
  const of = (level: number) => (table[level]?.daemon ?? 0) + (table[level]?.others ?? 0);
  return (of(top) - of(0)) / top;
};
for (const level of levels) {
  const of = (name: string) => (memory[name]?.[level]?.daemon ?? 0) + (memory[name]?.[level]?.others ?? 0);
  row(`PSS at ${level} pods, KiB`, of("containerd"), of("bulkhead"));
}
row("PSS per pod, KiB", perPod("containerd"), perPod("bulkhead"));
process.stdout.write(`${lines.join("\n")}\n`);
if (values.json)
  await writeFile(
    values.json,
    JSON.stringify(
      {
        date: new Date().toISOString(),
        cpu: cpus()[0]?.model,
        rounds,
        ratios: results,
        times: Object.fromEntries(times),
        memory,
      },
      null,
      1,
    ),
  );
