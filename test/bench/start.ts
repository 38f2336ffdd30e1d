import type { Engine } from "./engines.ts";
import { quantile, type Row } from "./figures.ts";
import type { Bench } from "./machine.ts";
import { endPod, startPod } from "./pod.ts";

const phases = ["start", "sandbox", "create", "start container", "stop"] as const;
type Phase = (typeof phases)[number];
type Taken = Record<Phase, number[]> & { wall: number; cpu: number };

/** Pods of `concurrency` clients at once, each started, then stopped and removed. */
const batch = async (engine: Engine, image: string, concurrency: number, taken: Taken): Promise<void> => {
  const [began, cpu] = [performance.now(), await engine.cpu.seconds()];
  await Promise.all(
    Array.from({ length: concurrency }, async () => {
      const from = performance.now();
      const { pod, milliseconds } = await startPod(engine, image);
      const started = performance.now();
      taken.start.push(started - from);
      taken.sandbox.push(milliseconds.sandbox);
      taken.create.push(milliseconds.create);
      taken["start container"].push(milliseconds.start);
      await endPod(engine, pod);
      taken.stop.push(performance.now() - started);
    }),
  );
  taken.wall += performance.now() - began;
  taken.cpu += (await engine.cpu.seconds()) - cpu;
};

const nothing = (): Taken => ({
  ...{ start: [], sandbox: [], create: [], "start container": [], stop: [] },
  ...{ wall: 0, cpu: 0 },
});

/** Pod start and stop, pods per second, and CPU for each, at concurrency 1, 8 and 32. */
export const start = async ({ engines, image, rounds, say }: Bench): Promise<Row[]> => {
  const rows: Row[] = [];
  for (const concurrency of [1, 8, 32]) {
    const taken: [Taken, Taken] = [nothing(), nothing()];
    // What is made at first use is not measured.
    for (const engine of engines) await batch(engine, image(engine), 1, nothing());
    const times = concurrency === 1 ? rounds : Math.max(1, Math.ceil(rounds / (concurrency / 2)));
    for (let round = 0; round < times; round++)
      for (const [index, engine] of engines.entries())
        await batch(engine, image(engine), concurrency, taken[index]!);
    const [theirs, ours] = taken;
    say(`start ×${concurrency}: ${ours.start.length} pods each`);
    const goals: Partial<Record<string, number>> = { "start 0.5": 0.5, "start 0.99": 0.6 };
    for (const q of [0.5, 0.99])
      for (const phase of phases) {
        if (phase !== "start" && phase !== "stop" && (concurrency > 1 || q > 0.5)) continue;
        const goal = goals[`${phase} ${q}`];
        rows.push({
          name: `${phase} p${q * 100} ×${concurrency}`,
          unit: "ms",
          containerd: quantile(theirs[phase], q),
          bulkhead: quantile(ours[phase], q),
          ...(goal === undefined ? {} : { goal }),
        });
      }
    const perSecond = ({ start, wall }: Taken): number => start.length / (wall / 1000);
    rows.push({
      ...{ name: `pods per second ×${concurrency}`, unit: "pods/s", more: true, goal: 1.8 },
      ...{ containerd: perSecond(theirs), bulkhead: perSecond(ours) },
    });
    rows.push({
      ...{ name: `CPU per pod ×${concurrency}`, unit: "s", goal: 0.8 },
      ...{ containerd: theirs.cpu / theirs.start.length, bulkhead: ours.cpu / ours.start.length },
    });
  }
  return rows;
};
