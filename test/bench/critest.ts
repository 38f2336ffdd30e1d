import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import * as z from "zod";
import { critestCommand } from "../cri/critest.ts";
import { outcome } from "../tools/run.ts";
import type { Engine } from "./engines.ts";
import { quantile, type Row } from "./figures.ts";
import type { Bench } from "./machine.ts";
import { pull } from "./pod.ts";

/** What critest writes of one of its benchmarks. */
const Result = z.object({
  operationsNames: z.array(z.string()),
  datapoints: z.array(z.object({ operationsDurationsNs: z.array(z.number()) })),
});

/** Milliseconds of each operation, by its name. */
type Taken = Map<string, number[]>;

/** critest's own benchmarks: life cycles of pods, containers and images, `rounds` of each, one after the other. */
export const critest = async ({ engines, machine, rounds, say }: Bench): Promise<Row[]> => {
  const image = `${machine.registry}/bulkhead/test:1`;
  const taken: Taken[] = [];
  for (const engine of engines) {
    taken.push(await benchmark(engine, image, rounds, join(machine.dir, `critest-${engine.name}`)));
    // It took the image away, which others may still run.
    await pull(engine, image);
  }
  const [theirs, ours] = taken as [Taken, Taken];
  say(`critest: ${rounds} life cycles of each`);
  return [...theirs].map(([operation, values]) => ({
    name: `critest ${operation} p50`,
    unit: "ms",
    containerd: quantile(values, 0.5),
    bulkhead: quantile(ours.get(operation) ?? [], 0.5),
  }));
};

const benchmark = async (engine: Engine, image: string, rounds: number, dir: string): Promise<Taken> => {
  await mkdir(dir);
  // JSON is YAML.
  await writeFile(join(dir, "images.yaml"), JSON.stringify({ defaultTestContainerImage: image }));
  await writeFile(
    join(dir, "params.yaml"),
    JSON.stringify({
      ...{ containersNumber: rounds, podsNumber: rounds, imagesNumber: rounds },
      ...{ imagePullingBenchmarkImage: image, imageListingBenchmarkImages: [image] },
    }),
  );
  const { argv, env } = critestCommand(engine.socket, [
    ...["-benchmark", "-runtime-handler", engine.handler, "-test-images-file", join(dir, "images.yaml")],
    ...["-benchmarking-params-file", join(dir, "params.yaml"), "-benchmarking-output-dir", dir],
  ]);
  const { code, stdout } = await outcome(argv, { cwd: dir, env });
  if (code !== 0) throw new Error(`critest's benchmark of ${engine.name} failed:\n${stdout.slice(-4000)}`);
  const taken: Taken = new Map();
  for (const file of await readdir(dir)) {
    if (!file.endsWith(".json")) continue;
    const { operationsNames, datapoints } = Result.parse(JSON.parse(await readFile(join(dir, file), "utf8")));
    for (const [index, operation] of operationsNames.entries())
      taken.set(
        operation,
        datapoints.map((each) => (each.operationsDurationsNs[index] ?? Number.NaN) / 1e6),
      );
  }
  return taken;
};
