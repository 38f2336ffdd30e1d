import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import * as cri from "@bulkhead/lib/gen/cri_pb.js";
import type { Entry } from "./ledger.ts";
import { firstLines } from "./ledger.ts";
import { firstHostPort, type Node } from "./node.ts";
import type { Actor, Program, Step } from "./plan.ts";

/** The image of all containers, and those that are pulled and removed for the sake of it. */
export const image = "registry.test/bulkhead/test:1";
export const spareImage = (index: number): string =>
  `registry.test/k8s-staging-cri-tools/test-image-${index + 1}:latest`;

/** kubelet gives a call two minutes; here nothing takes that long. */
const patienceMs = 30_000;

const script = ({ kind, code, seconds }: Program): string => {
  const say = `for i in $(seq 1 ${firstLines}); do echo line $i; done`;
  const stay = "while :; do sleep 0.05; done";
  if (kind === "ends") return `${say}; sleep ${seconds}; exit ${code}`;
  return kind === "asked" ? `trap 'exit ${code}' TERM; ${say}; ${stay}` : `${say}; ${stay}`;
};

/** Works on one pod by the steps of a plan, takes every failure as kubelet would, and writes down what it was told. */
export class Worker {
  readonly entries: Entry[] = [];
  readonly problems: string[] = [];
  readonly uid = randomUUID();
  calls = 0;
  failures = 0;
  readonly #node: Node;
  readonly #actor: Actor;
  readonly #index: number;
  #podAttempt = 0;
  #attempt = 0;
  #pod = "";

  constructor(node: Node, actor: Actor, index: number) {
    this.#node = node;
    this.#actor = actor;
    this.#index = index;
  }

  async work(): Promise<void> {
    await this.#runPod({});
    for (const step of this.#actor.steps) {
      await sleep(step.pause);
      if (this.#pod === "") await this.#runPod({});
      await this.#take(step);
    }
  }

  async #take(step: Step): Promise<void> {
    const { runtime, image: images } = this.#node.cri;
    const last = this.entries.findLast(({ id, remove }) => id !== undefined && remove !== "done");
    switch (step.do) {
      case "container":
        if (this.#pod === "") return void (await this.#runPod(step));
        return await this.#container(step.program, step);
      case "exec": {
        if (last?.id === undefined) return;
        const { id } = last;
        const request = create(cri.ExecSyncRequestSchema, {
          containerId: id,
          cmd: ["sh", "-c", `echo out; exit ${step.code}`],
          timeout: 10n,
        });
        const answer = await this.#call(step, (signal) => runtime.execSync(request, signal));
        // A container that ended meanwhile takes the command with it.
        if (answer === undefined || last.ending || [137, 143, 255].includes(answer.exitCode)) return;
        if (answer.exitCode !== step.code && last.program.kind !== "ends")
          this.problems.push(`exec in ${id.slice(0, 13)} ended with ${answer.exitCode}, not ${step.code}`);
        return;
      }
      case "stop": {
        if (last?.id === undefined) return;
        last.ending = true;
        const request = create(cri.StopContainerRequestSchema, {
          containerId: last.id,
          timeout: BigInt(step.grace),
        });
        return void (await this.#call(step, (signal) => runtime.stopContainer(request, signal)));
      }
      case "remove": {
        if (last?.id === undefined) return;
        last.ending = true;
        last.remove = "asked";
        const request = create(cri.RemoveContainerRequestSchema, { containerId: last.id });
        const answer = await this.#call(step, (signal) => runtime.removeContainer(request, signal));
        if (answer !== undefined) last.remove = "done";
        return;
      }
      case "look": {
        await this.#call(step, (signal) =>
          runtime.listContainerStats(create(cri.ListContainerStatsRequestSchema), signal),
        );
        return void (await this.#call(step, (signal) =>
          runtime.listPodSandboxStats(create(cri.ListPodSandboxStatsRequestSchema), signal),
        ));
      }
      case "pull": {
        const request = create(cri.PullImageRequestSchema, { image: { image: spareImage(step.image) } });
        return void (await this.#call(step, (signal) => images.pullImage(request, signal)));
      }
      case "remove-image": {
        const request = create(cri.RemoveImageRequestSchema, { image: { image: spareImage(step.image) } });
        return void (await this.#call(step, (signal) => images.removeImage(request, signal)));
      }
      case "replace-pod": {
        if (this.#pod === "") return void (await this.#runPod(step));
        const pod = this.#pod;
        for (const entry of this.entries) if (entry.podId === pod) entry.ending = true;
        const request = create(cri.StopPodSandboxRequestSchema, { podSandboxId: pod });
        if ((await this.#call(step, (signal) => runtime.stopPodSandbox(request, signal))) === undefined)
          return;
        for (const entry of this.entries) if (entry.podId === pod) entry.remove = "asked";
        const removal = create(cri.RemovePodSandboxRequestSchema, { podSandboxId: pod });
        const answer = await this.#call({}, (signal) => runtime.removePodSandbox(removal, signal));
        if (answer === undefined) return;
        for (const entry of this.entries) if (entry.podId === pod) entry.remove = "done";
        this.#pod = "";
        return void (await this.#runPod({}));
      }
    }
  }

  /** The answer, undefined when there was none. With `twice` the same is asked twice at once: one answer is enough. */
  async #call<T>(
    how: Pick<Step, "cancel" | "twice">,
    ask: (signal: AbortSignal) => Promise<T>,
  ): Promise<T | undefined> {
    const once = async (): Promise<T | undefined> => {
      this.calls++;
      try {
        return await ask(AbortSignal.timeout(how.cancel ?? patienceMs));
      } catch {
        this.failures++;
        // A daemon that is away refuses at once: the rest of the plan shall still meet one that is back.
        if (how.cancel === undefined) await sleep(250);
        return undefined;
      }
    };
    if (how.twice !== true) return await once();
    const answers = await Promise.all([once(), once()]);
    return answers.find((answer) => answer !== undefined);
  }

  get #config() {
    return create(cri.PodSandboxConfigSchema, {
      metadata: {
        name: `pod-${this.#index}`,
        namespace: "faults",
        uid: this.uid,
        attempt: this.#podAttempt,
      },
      hostname: "faults",
      logDirectory: `${this.#node.logs}/${this.uid}`,
      labels: { actor: String(this.#index) },
      portMappings: this.#actor.hostPort
        ? [{ protocol: cri.Protocol.TCP, containerPort: 80, hostPort: firstHostPort + this.#index }]
        : [],
      linux: {
        cgroupParent: `/${this.#node.cgroup}/${this.uid}`,
        securityContext: { namespaceOptions: { pid: this.#pidMode } },
      },
    });
  }

  get #pidMode(): cri.NamespaceMode {
    return this.#actor.sharedPid ? cri.NamespaceMode.POD : cri.NamespaceMode.CONTAINER;
  }

  async #runPod(how: Pick<Step, "cancel" | "twice">): Promise<void> {
    const request = create(cri.RunPodSandboxRequestSchema, {
      config: this.#config,
      runtimeHandler: this.#actor.handler,
    });
    const answer = await this.#call(how, (signal) => this.#node.cri.runtime.runPodSandbox(request, signal));
    if (answer === undefined) return;
    this.#pod = answer.podSandboxId;
    this.#podAttempt++;
  }

  async #container(program: Program, how: Pick<Step, "cancel" | "twice">): Promise<void> {
    const entry: Entry = {
      ...{ actor: this.#index, attempt: this.#attempt++, program, podId: this.#pod },
      ...{ start: "not asked", ending: false, remove: "not asked" },
    };
    this.entries.push(entry);
    const answer = await this.#call(how, (signal) => this.#create(entry, signal));
    if (answer === undefined) return;
    entry.id = answer.containerId;
    entry.start = "asked";
    const request = create(cri.StartContainerRequestSchema, { containerId: answer.containerId });
    // Of two starts at once one must fail: this is asked once.
    const { cancel } = how;
    const started = await this.#call(cancel === undefined ? {} : { cancel }, (signal) =>
      this.#node.cri.runtime.startContainer(request, signal),
    );
    entry.start = started === undefined ? "failed" : "done";
  }

  #create(entry: Entry, signal: AbortSignal): Promise<cri.CreateContainerResponse> {
    return this.#node.cri.runtime.createContainer(
      create(cri.CreateContainerRequestSchema, {
        podSandboxId: entry.podId,
        sandboxConfig: this.#config,
        config: create(cri.ContainerConfigSchema, {
          metadata: { name: "main", attempt: entry.attempt },
          image: { image },
          command: ["sh", "-c", script(entry.program)],
          labels: { actor: String(this.#index), attempt: String(entry.attempt) },
          logPath: `main-${entry.attempt}.log`,
          linux: { securityContext: { namespaceOptions: { pid: this.#pidMode } } },
        }),
      }),
      signal,
    );
  }

  /**
   * What kubelet does in the end: looks, uses a pod that is ready or stops it and runs the next attempt, and starts
   * the next attempt of the container. Throws where a call fails.
   */
  async sync(): Promise<void> {
    const { runtime } = this.#node.cri;
    const signal = AbortSignal.timeout(patienceMs);
    const { items } = await runtime.listPodSandbox(create(cri.ListPodSandboxRequestSchema), signal);
    const mine = items.filter(({ metadata }) => metadata?.uid === this.uid);
    const ready = mine.filter(({ state }) => state === cri.PodSandboxState.SANDBOX_READY);
    if (ready.length > 1) throw new Error(`${ready.length} sandboxes of one pod are ready`);
    for (const { id, state } of mine)
      if (state !== cri.PodSandboxState.SANDBOX_READY)
        await runtime.stopPodSandbox(create(cri.StopPodSandboxRequestSchema, { podSandboxId: id }), signal);
    this.#pod = ready[0]?.id ?? "";
    if (this.#pod === "") {
      this.#podAttempt = 1 + Math.max(-1, ...mine.map(({ metadata }) => metadata?.attempt ?? 0));
      this.#pod = (
        await runtime.runPodSandbox(
          create(cri.RunPodSandboxRequestSchema, {
            config: this.#config,
            runtimeHandler: this.#actor.handler,
          }),
          signal,
        )
      ).podSandboxId;
    }
    const { containers } = await runtime.listContainers(create(cri.ListContainersRequestSchema), signal);
    const attempts = containers
      .filter(({ podSandboxId }) => podSandboxId === this.#pod)
      .map(({ metadata }) => metadata?.attempt ?? 0);
    const entry: Entry = {
      ...{ actor: this.#index, attempt: 1 + Math.max(-1, ...attempts), podId: this.#pod },
      ...{ program: { kind: "stays", code: 0, seconds: 0 }, start: "asked", ending: true, remove: "asked" },
    };
    const { containerId } = await this.#create(entry, signal);
    await runtime.startContainer(create(cri.StartContainerRequestSchema, { containerId }), signal);
    const { stdout, exitCode } = await runtime.execSync(
      create(cri.ExecSyncRequestSchema, { containerId, cmd: ["echo", "here"], timeout: 10n }),
      signal,
    );
    if (exitCode !== 0 || Buffer.from(stdout).toString() !== "here\n")
      throw new Error(`exec in the new container ended with ${exitCode} and "${Buffer.from(stdout)}"`);
  }
}
