import { readdir, readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import * as cri from "@bulkhead/lib/gen/cri_pb.js";
import { Command } from "commander";
import { quantile } from "../bench/figures.ts";
import { prepare } from "../bench/machine.ts";
import { endPod, startPod } from "../bench/pod.ts";
import { wholeNumber } from "../dev/numbers.ts";

/** `./dev soak`: containers by the thousand in one life of the daemon, and whether its memory and files stay as they are. */
const { containers: wanted, minutes } = new Command("./dev soak")
  .description("Containers in one life of the daemon; memory and descriptors stay flat.")
  .option("--containers <number>", "how many", wholeNumber(100), 10_000)
  .option("--minutes <number>", "no more are begun after so many", wholeNumber(1), 120)
  .showHelpAfterError()
  .parse()
  .opts<{ containers: number; minutes: number }>();
const end = Date.now() + minutes * 60_000;
const [clients, perPod, everyContainers] = [4, 20, Math.max(100, Math.round(wanted / 40))];
/** Growth that is allowed between the first and the last third of the samples. */
const [mostMegabytes, mostFiles] = [8, 4];

type Sample = { containers: number; memory: number; files: number; threads: number };

await using undo = new AsyncDisposableStack();
const { engines, image } = await prepare(undo, { rounds: 1, levels: [] }, () => {});
const [, engine] = engines;
const deadline = (): AbortSignal => AbortSignal.timeout(120_000);

const look = async (containers: number): Promise<Sample> => {
  // Two seconds of quiet: the daemon gives back what it freed after one.
  await sleep(2500);
  const read = (file: string): Promise<string> => readFile(`/proc/${engine.pid}/${file}`, "utf8");
  const number = (text: string, name: string): number =>
    Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(text)?.[1]);
  const sample = {
    containers,
    // Its own pages only: what it shares depends on the other Node processes of this machine.
    memory: number(await read("smaps_rollup"), "Private_Dirty") / 1024,
    files: (await readdir(`/proc/${engine.pid}/fd`)).length,
    threads: number(await read("status"), "Threads"),
  };
  process.stdout.write(
    `${String(containers).padStart(6)} containers: ${sample.memory.toFixed(1)} MB, ${sample.files} files, ${sample.threads} threads\n`,
  );
  return sample;
};

let done = 0;
let failed = 0;
/** A pod, and in it one container after the other: created, started, ended or killed, removed. */
const work = async (until: number): Promise<void> => {
  while (done < until) {
    const { pod } = await startPod(engine, image(engine));
    const { runtime } = engine.cri;
    for (let attempt = 1; attempt < perPod && done < until; attempt++) {
      done++;
      try {
        const { containerId } = await runtime.createContainer(
          create(cri.CreateContainerRequestSchema, {
            podSandboxId: pod,
            config: create(cri.ContainerConfigSchema, {
              metadata: { name: "soak", attempt },
              image: { image: image(engine) },
              command: ["sh", "-c", attempt % 2 === 0 ? "exit 3" : "sleep 1000"],
              logPath: `soak-${attempt}.log`,
              linux: { securityContext: { namespaceOptions: { pid: 1 } } },
            }),
          }),
          deadline(),
        );
        await runtime.startContainer(create(cri.StartContainerRequestSchema, { containerId }), deadline());
        if (attempt % 5 === 0)
          await runtime
            .execSync(
              create(cri.ExecSyncRequestSchema, { containerId, cmd: ["true"], timeout: 10n }),
              deadline(),
            )
            .catch(() => {});
        await runtime.removeContainer(create(cri.RemoveContainerRequestSchema, { containerId }), deadline());
      } catch (error) {
        failed++;
        process.stdout.write(`  ${error}\n`);
      }
    }
    await endPod(engine, pod);
  }
};

const samples: Sample[] = [];
while (done < wanted && Date.now() < end) {
  const until = Math.min(wanted, done + everyContainers);
  await Promise.all(Array.from({ length: clients }, () => work(until)));
  samples.push(await look(done));
}
const third = Math.max(1, Math.floor(samples.length / 3));
const growth = (of: (sample: Sample) => number): number =>
  quantile(samples.slice(-third).map(of), 0.5) - quantile(samples.slice(0, third).map(of), 0.5);
const [megabytes, files] = [growth(({ memory }) => memory), growth(({ files }) => files)];
const flat = megabytes <= mostMegabytes && files <= mostFiles && failed === 0;
process.stdout.write(
  `${flat ? "✓" : "✗"} ${done} containers, ${failed} failed: ${megabytes.toFixed(1)} MB (≤ ${mostMegabytes}) and ${files} files (≤ ${mostFiles}) more in the last third than in the first\n`,
);
process.exitCode = flat ? 0 : 1;
