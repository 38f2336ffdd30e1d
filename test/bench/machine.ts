import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { ensureTestImages } from "../images/build.ts";
import { startRegistry } from "../images/registry.ts";
import { run } from "../tools/run.ts";
import { type Engine, type Machine, startBulkhead, startContainerd } from "./engines.ts";
import { pull } from "./pod.ts";

/** What a benchmark is given: the engines in their turns, each with the id of the image that pods run. */
export type Bench = {
  machine: Machine;
  engines: readonly [containerd: Engine, bulkhead: Engine];
  image(engine: Engine): string;
  rounds: number;
  /** Numbers of pods at which memory is measured, from none to the most. */
  levels: readonly number[];
  say(line: string): void;
};

const bridge = "bhbench0";

/** Registry, network and engines for a run; all of it goes with the stack. */
export const prepare = async (
  undo: AsyncDisposableStack,
  { rounds, levels }: Pick<Bench, "rounds" | "levels">,
  say: (line: string) => void,
): Promise<Bench> => {
  const dir = await mkdtemp("/var/tmp/bh-bench-");
  undo.defer(() => rm(dir, { recursive: true, force: true }));
  // As /run is on a node, where both keep it unless told otherwise; here /run may be a disk.
  const stateDir = await mkdtemp("/dev/shm/bh-bench-");
  undo.defer(() => rm(stateDir, { recursive: true, force: true }));
  undo.defer(() => rm("/tmp/bh-bench-logs", { recursive: true, force: true }));
  const registry = await startRegistry({ dir: join(dir, "registry"), address: "127.0.0.1" });
  undo.defer(() => registry.stop());
  await ensureTestImages(registry.url, ["bulkhead/test:1", "pause:3.10"]);
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
  const machine: Machine = { dir, stateDir, registry: registry.host, cniConf };
  const containerd = await startContainerd(machine);
  undo.defer(() => containerd.stop());
  const bulkhead = await startBulkhead(machine);
  undo.defer(() => bulkhead.stop());
  const images = new Map<Engine, string>();
  for (const engine of [containerd, bulkhead])
    images.set(engine, await pull(engine, `${registry.host}/bulkhead/test:1`));
  return {
    machine,
    engines: [containerd, bulkhead],
    image: (engine) => images.get(engine) ?? "",
    rounds,
    levels,
    say,
  };
};

/** The same under each engine, in turns; returns what each gave. */
export const inTurns = async <T>(
  { engines, rounds }: Pick<Bench, "engines" | "rounds">,
  work: (engine: Engine) => Promise<T>,
  times = rounds,
): Promise<readonly [containerd: T[], bulkhead: T[]]> => {
  const results: [T[], T[]] = [[], []];
  for (let round = 0; round < times; round++)
    for (const [index, engine] of engines.entries()) results[index]?.push(await work(engine));
  return results;
};
