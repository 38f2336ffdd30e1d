import { cp, mkdtemp, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import * as cri from "@bulkhead/lib/gen/cri_pb.js";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { ensureTestImages } from "../images/build.ts";
import { startRegistry } from "../images/registry.ts";
import { inCache } from "../tools/cache.ts";
import { inject } from "./inject.ts";
import { audit, type Hits, type Listed } from "./ledger.ts";
import { createNode, lift, type Node } from "./node.ts";
import { faultText, roundOf, spareImages } from "./plan.ts";
import { difference, processesOf, removePodCgroups, type Traces, tracesOf } from "./traces.ts";
import { image, spareImage, Worker } from "./worker.ts";

export type FaultRun = {
  seed: number;
  /** The first round and how many; a single one of another run is repeated by its number. */
  first: number;
  rounds: number;
  /** No round begins later. */
  minutes: number;
  /** Where the daemon's log of a round with problems is kept. */
  keepLogs: boolean;
  say(line: string): void;
  signal: AbortSignal;
};

/** How long recovering and cleaning up may take: monitors are looked at every ten seconds. */
const settleMs = 45_000;
const deadline = (): AbortSignal => AbortSignal.timeout(60_000);

/** Rounds of random work and faults; after each the truth is compared. Returns the number of rounds with problems. */
export const faultRun = async (options: FaultRun): Promise<{ rounds: number; bad: number }> => {
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(await startRegistry({ dir: inCache("cri-registry") }));
  await ensureTestImages(registry.host, [
    "bulkhead/test:1",
    ...Array.from({ length: spareImages }, (_, index) => spareImage(index).replace(/^registry\.test\//, "")),
  ]);
  const end = Date.now() + options.minutes * 60_000;
  let place: { node: Node; baseline: Traces } | undefined;
  undo.defer(async () => await place?.node[Symbol.asyncDispose]());
  let [rounds, bad] = [0, 0];
  for (; rounds < options.rounds && Date.now() < end && !options.signal.aborted; rounds++) {
    const number = options.first + rounds;
    place ??= await prepare(registry.host);
    const problems = await runRound(place.node, place.baseline, registry.pid, number, options);
    if (problems.length === 0) continue;
    bad++;
    for (const problem of problems) options.say(`    ✗ ${problem}`);
    options.say(`    again: ./dev faults --seed ${options.seed} --round ${number} --rounds 1`);
    if (options.keepLogs) {
      const kept = await mkdtemp("/tmp/bulkhead-faults-");
      await cp(place.node.daemonLog, join(kept, "daemon.log"));
      options.say(`    the daemon's log: ${kept}/daemon.log`);
    }
    // The next round shall not suffer from this one.
    await place.node[Symbol.asyncDispose]();
    place = undefined;
  }
  return { rounds, bad };
};

/** A node, used once by each handler, so that what is made at first use is in the baseline. */
const prepare = async (registry: string): Promise<{ node: Node; baseline: Traces }> => {
  const node = await createNode(registry);
  try {
    await node.cri.image.pullImage(create(cri.PullImageRequestSchema, { image: { image } }), deadline());
    for (const handler of ["runc", "gvisor"] as const) {
      const worker = new Worker(node, { handler, sharedPid: true, hostPort: true, steps: [] }, 0);
      await worker.sync();
      await removePods(node);
    }
    await removeSpare(node);
    await sleep(1500);
    await removePodCgroups(node);
    return { node, baseline: await tracesOf(node) };
  } catch (error) {
    await node[Symbol.asyncDispose]();
    throw error;
  }
};

const runRound = async (
  node: Node,
  baseline: Traces,
  registryPid: number,
  number: number,
  { seed, say }: FaultRun,
): Promise<string[]> => {
  const from = Date.now();
  const plan = roundOf(seed, number);
  const unwritable = plan.faults.some(
    (fault) => fault.what === "read-only" || (fault.what === "full" && fault.where === "state"),
  );
  const hits: Hits = { monitors: new Set(), processes: new Set(), unwritable };
  const workers = plan.actors.map((actor, index) => new Worker(node, actor, index));
  let starting: Promise<void> = Promise.resolve();
  const restart = (): void => {
    starting = starting.then(() => node.start());
    starting.catch(() => {});
  };
  await Promise.all([
    ...workers.map((worker) => worker.work()),
    ...plan.faults.map(async (fault) => {
      await sleep(fault.at);
      await inject(node, fault, registryPid, hits, restart);
    }),
  ]);
  const problems = workers.flatMap((worker) => worker.problems);
  const step = async (what: string, work: () => Promise<void>): Promise<void> => {
    try {
      await work();
    } catch (error) {
      problems.push(`${what}: ${messageOf(error)}`);
    }
  };
  await lift(node);
  await step("the daemon does not come back", async () => {
    await starting;
    await node.start();
  });
  const entries = workers.flatMap((worker) => worker.entries);
  await step("the records cannot be compared", async () => {
    let found = ["not looked at"];
    for (const end = Date.now() + settleMs; found.length > 0 && Date.now() < end; await sleep(200))
      found = audit(entries, await listed(node), hits);
    problems.push(...found);
  });
  for (const worker of workers)
    await step("a retry by kubelet's rules fails", async () => {
      for (const end = Date.now() + settleMs; ; await sleep(500)) {
        try {
          return await worker.sync();
        } catch (error) {
          if (Date.now() > end) throw error;
        }
      }
    });
  await step("the pods cannot be removed", () => removePods(node));
  await step("the images cannot be removed", () => removeSpare(node));
  await step("the traces cannot be compared", async () => {
    let left = ["not looked at"];
    for (const end = Date.now() + settleMs; left.length > 0 && Date.now() < end; await sleep(250)) {
      await removePodCgroups(node);
      left = difference(baseline, await tracesOf(node));
    }
    problems.push(...left);
  });
  const calls = workers.reduce((sum, worker) => sum + worker.calls, 0);
  const failures = workers.reduce((sum, worker) => sum + worker.failures, 0);
  const faults = plan.faults.map(faultText).join("; ");
  const seconds = ((Date.now() - from) / 1000).toFixed(1);
  const mark = problems.length === 0 ? "✓" : "✗";
  say(
    `${mark} round ${number}: ${workers.length} pods, ${calls} calls (${failures} failed), ${seconds} s; ${faults}`,
  );
  return problems;
};

const states = {
  [cri.ContainerState.CONTAINER_CREATED]: "created",
  [cri.ContainerState.CONTAINER_RUNNING]: "running",
  [cri.ContainerState.CONTAINER_EXITED]: "exited",
  [cri.ContainerState.CONTAINER_UNKNOWN]: "unknown",
} as const;

/** The daemon's containers, and what the machine says of each. */
const listed = async (node: Node): Promise<Listed[]> => {
  const { runtime } = node.cri;
  const { containers } = await runtime.listContainers(create(cri.ListContainersRequestSchema), deadline());
  const processes = await processesOf(node);
  const cgroups = await Promise.all(
    processes.map(({ pid }) => readFile(`/proc/${pid}/cgroup`, "utf8").catch(() => "")),
  );
  return await Promise.all(
    containers.map(async ({ id, labels, podSandboxId, metadata }): Promise<Listed> => {
      const { status } = await runtime.containerStatus(
        create(cri.ContainerStatusRequestSchema, { containerId: id }),
        deadline(),
      );
      const state = states[status?.state ?? cri.ContainerState.CONTAINER_UNKNOWN];
      const gvisor = processes.some(
        ({ argv }) => argv[0]?.includes("runsc") === true && argv.includes(podSandboxId),
      );
      const lines = status?.logPath
        ? (await readFile(status.logPath, "utf8").catch(() => ""))
            .split("\n")
            .filter((line) => line !== "")
            .map((line) => line.split(" ").slice(3).join(" "))
        : [];
      return {
        id,
        actor: Number(labels.actor),
        attempt: metadata?.attempt ?? 0,
        podId: podSandboxId,
        state,
        exitCode: status?.exitCode ?? 0,
        reason: status?.reason ?? "",
        ...(state === "exited" ? { lines } : {}),
        // gVisor's containers are in its sandbox, where nobody sees them from here.
        alive: gvisor ? state === "running" : cgroups.some((text) => text.includes(id)),
      };
    }),
  );
};

const removePods = async (node: Node): Promise<void> => {
  const { runtime } = node.cri;
  for (const end = Date.now() + settleMs; ; await sleep(500)) {
    const { items } = await runtime.listPodSandbox(create(cri.ListPodSandboxRequestSchema), deadline());
    if (items.length === 0) return;
    try {
      for (const { id: podSandboxId } of items) {
        await runtime.stopPodSandbox(create(cri.StopPodSandboxRequestSchema, { podSandboxId }), deadline());
        await runtime.removePodSandbox(
          create(cri.RemovePodSandboxRequestSchema, { podSandboxId }),
          deadline(),
        );
      }
    } catch (error) {
      if (Date.now() > end) throw error;
    }
  }
};

const pullSpare = async (node: Node): Promise<void> => {
  for (let index = 0; index < spareImages; index++)
    await node.cri.image.pullImage(
      create(cri.PullImageRequestSchema, { image: { image: spareImage(index) } }),
      deadline(),
    );
};

const removeSpare = async (node: Node): Promise<void> => {
  // What a pull that was cut short left would stay ten minutes for the next try: this is that try.
  await pullSpare(node);
  for (let index = 0; index < spareImages; index++)
    await node.cri.image.removeImage(
      create(cri.RemoveImageRequestSchema, { image: { image: spareImage(index) } }),
      deadline(),
    );
};
