import { setTimeout as sleep } from "node:timers/promises";
import { create, type DescMessage, type MessageInitShape } from "@bufbuild/protobuf";
import * as cri from "@bulkhead/lib/gen/cri_pb.js";
import type { Engine } from "./engines.ts";
import { quantile, type Row } from "./figures.ts";
import { type Bench, inTurns } from "./machine.ts";
import { pss } from "./memory.ts";
import { endPod, startPod } from "./pod.ts";

/** Starts at once while a level is reached: nothing is measured then. */
const atOnce = 4;
/** After this long nothing of a start is under way any more. */
const quietMs = 4_000;
const idleSeconds = 20;

const message = <T extends DescMessage>(schema: T) => create(schema, {} as MessageInitShape<T>);

const fill = async (engine: Engine, image: string, pods: string[], level: number): Promise<void> => {
  await Promise.all(
    Array.from({ length: atOnce }, async (_, first) => {
      for (let index = pods.length + first; index < level; index += atOnce)
        pods.push((await startPod(engine, image)).pod);
    }),
  );
};

/** What a kubelet asks without events: pods and containers every second, status every five, stats every ten. */
const poll = async ({ cri: { runtime } }: Engine, seconds: number): Promise<void> => {
  const signal = (): AbortSignal => AbortSignal.timeout(10_000);
  for (let second = 0; second < seconds; second++) {
    const began = performance.now();
    await runtime.listPodSandbox(message(cri.ListPodSandboxRequestSchema), signal());
    await runtime.listContainers(message(cri.ListContainersRequestSchema), signal());
    if (second % 5 === 0) await runtime.status(message(cri.StatusRequestSchema), signal());
    if (second % 10 === 0) {
      await runtime.listPodSandboxStats(message(cri.ListPodSandboxStatsRequestSchema), signal());
      await runtime.listContainerStats(message(cri.ListContainerStatsRequestSchema), signal());
    }
    await sleep(Math.max(0, 1000 - (performance.now() - began)));
  }
};

const listings = {
  "list of pods": ({ cri: { runtime } }: Engine) =>
    runtime.listPodSandbox(message(cri.ListPodSandboxRequestSchema), AbortSignal.timeout(10_000)),
  "list of containers": ({ cri: { runtime } }: Engine) =>
    runtime.listContainers(message(cri.ListContainersRequestSchema), AbortSignal.timeout(10_000)),
  "stats of pods": ({ cri: { runtime } }: Engine) =>
    runtime.listPodSandboxStats(message(cri.ListPodSandboxStatsRequestSchema), AbortSignal.timeout(10_000)),
  "stats of containers": ({ cri: { runtime } }: Engine) =>
    runtime.listContainerStats(message(cri.ListContainerStatsRequestSchema), AbortSignal.timeout(10_000)),
};

/** Memory at each level of pods; then, at the last, what idling costs, how long a list takes, and a restart. */
export const many = async (bench: Bench): Promise<Row[]> => {
  const rows: Row[] = [];
  const pods = bench.engines.map((): string[] => []);
  const { levels } = bench;
  const memory: { daemon: number; others: number }[][] = [];
  for (const level of levels) {
    for (const [index, engine] of bench.engines.entries())
      await fill(engine, bench.image(engine), pods[index]!, level);
    await sleep(quietMs);
    const both = await Promise.all(bench.engines.map(pss));
    memory.push(both);
    const [theirs, ours] = both.map(({ daemon, others }) => (daemon + others) / 1024);
    rows.push({
      ...{ name: `memory (PSS) at ${level} pods`, unit: "MB", containerd: theirs!, bulkhead: ours! },
      ...(level === levels[0] ? { goal: 1.5 } : {}),
    });
    bench.say(`${level} pods under each engine`);
  }
  const most = levels.at(-1)!;
  const perPod = (index: number): number => {
    const total = ({ daemon, others }: { daemon: number; others: number }): number => daemon + others;
    return (total(memory.at(-1)![index]!) - total(memory[0]![index]!)) / (most - levels[0]!) / 1024;
  };
  rows.push({
    ...{ name: "memory (PSS) per pod", unit: "MB", goal: 0.12 },
    ...{ containerd: perPod(0), bulkhead: perPod(1) },
  });

  const [idleTheirs, idleOurs] = await inTurns(
    bench,
    async (engine) => {
      const before = await engine.cpu.seconds();
      await poll(engine, idleSeconds);
      return (((await engine.cpu.seconds()) - before) / idleSeconds) * 100;
    },
    1,
  );
  rows.push({
    ...{ name: `CPU at ${most} pods, polled`, unit: "%" },
    ...{ containerd: quantile(idleTheirs, 0.5), bulkhead: quantile(idleOurs, 0.5) },
  });

  for (const [name, list] of Object.entries(listings)) {
    const [theirs, ours] = await inTurns(
      bench,
      async (engine) => {
        const began = performance.now();
        await list(engine);
        return performance.now() - began;
      },
      Math.max(20, bench.rounds),
    );
    rows.push({
      ...{ name: `${name} at ${most} pods p50`, unit: "ms" },
      ...{ containerd: quantile(theirs, 0.5), bulkhead: quantile(ours, 0.5) },
      ...(name.startsWith("list") ? { goal: 1 } : {}),
    });
  }

  const [restartTheirs, restartOurs] = await inTurns(bench, (engine) => engine.restart(), 3);
  rows.push({
    ...{ name: `daemon's start with ${most} pods`, unit: "ms", limit: 1000 },
    ...{ containerd: quantile(restartTheirs, 0.5), bulkhead: quantile(restartOurs, 0.5) },
  });
  for (const [index, engine] of bench.engines.entries())
    await Promise.all(
      Array.from({ length: atOnce }, async (_, first) => {
        const mine = pods[index]!;
        for (let each = first; each < mine.length; each += atOnce) await endPod(engine, mine[each]!);
      }),
    );
  return rows;
};
