import { create } from "@bufbuild/protobuf";
import { ExecSyncRequestSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { tool } from "../tools/cache.ts";
import { run } from "../tools/run.ts";
import type { Engine } from "./engines.ts";
import { quantile, type Row } from "./figures.ts";
import { type Bench, inTurns } from "./machine.ts";
import { endPod, startPod } from "./pod.ts";

/** Calls of one engine in a row before the other's turn. */
const inRow = 5;

/** A command that does nothing, in a container that runs: ExecSync, and Exec as crictl streams it. */
export const exec = async (bench: Bench): Promise<Row[]> => {
  const containers = new Map<Engine, { pod: string; container: string }>();
  for (const engine of bench.engines) containers.set(engine, await startPod(engine, bench.image(engine)));
  const idOf = (engine: Engine): string => containers.get(engine)?.container ?? "";
  const several = async (work: () => Promise<unknown>): Promise<number[]> => {
    const taken: number[] = [];
    for (let call = 0; call < inRow; call++) {
      const began = performance.now();
      await work();
      taken.push(performance.now() - began);
    }
    return taken;
  };
  const sync = (engine: Engine) =>
    several(() =>
      engine.cri.runtime.execSync(
        create(ExecSyncRequestSchema, { containerId: idOf(engine), cmd: ["true"], timeout: 10n }),
        AbortSignal.timeout(20_000),
      ),
    );
  const streamed = (engine: Engine) =>
    several(() =>
      run([
        ...[tool("crictl"), "--runtime-endpoint", `unix://${engine.socket}`],
        ...["exec", idOf(engine), "true"],
      ]),
    );
  await inTurns(bench, sync, 1);
  const rows: Row[] = [];
  for (const [name, work, goal] of [
    ["ExecSync", sync, 0.9],
    ["exec by crictl, streaming", streamed, undefined],
  ] as const) {
    const [theirs, ours] = (await inTurns(bench, work)).map((each) => each.flat());
    for (const q of [0.5, 0.99])
      rows.push({
        ...{ name: `${name} p${q * 100}`, unit: "ms" },
        ...{ containerd: quantile(theirs ?? [], q), bulkhead: quantile(ours ?? [], q) },
        ...(q === 0.5 && goal !== undefined ? { goal } : {}),
      });
  }
  for (const [engine, { pod }] of containers) await endPod(engine, pod);
  return rows;
};
