import { mkdir, readFile, rmdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readProcess } from "../../runtime/src/linux/process.ts";
import { cgroupDirs } from "../cluster/mounts.ts";
import { tool } from "../tools/cache.ts";
import { built } from "../tools/cargo.ts";
import { outcome } from "../tools/run.ts";
import { wat } from "../tools/wat.ts";
import { type Daemon, remains } from "./daemon.ts";
import { busybox, containerConfig, criPods, type Fields, type Pod } from "./pods.ts";

/** Shims of other code than containerd's, as they come from crates.io: nothing in Bulkhead was written for them. */

type Status = { state: string; exitCode: number; reason: string };

/** Pods of one shim, and what is left of them in the end. */
const shimPods = (name: string, subnet: number, handler: object) => {
  const cgroups = `bh-${name}-${process.pid}`;
  const cri = criPods({
    ...{ name, subnet, handler: name },
    prepare: ({ handlersDir }) =>
      writeFile(join(handlersDir, `${name}.yaml`), JSON.stringify({ kind: "shim", name, ...handler })),
  });
  let daemon: Daemon;
  let scratch: string;
  beforeAll(async () => {
    ({ daemon, scratch } = await cri.open());
  });
  afterAll(async () => {
    await cri.close();
    for (const dir of await cgroupDirs(cgroups)) await rmdir(dir);
  });
  const statusOf = async (id: string) =>
    (JSON.parse(await daemon.crictl("inspect", id)) as { status: Status }).status;
  return {
    ...cri,
    cgroups,
    daemon: () => daemon,
    scratch: () => scratch,
    run: (fields: Fields = {}) =>
      cri.runPod({
        linux: {
          cgroup_parent: `/${cgroups}`,
          security_context: { namespace_options: { pid: "CONTAINER" } },
        },
        ...fields,
      }),
    log: async (pod: Pod, container: string) =>
      (await readFile(join(pod.config.logDirectory, `${container}.log`), "utf8").catch(() => ""))
        .split("\n")
        .map((line) => line.split(" ").slice(1).join(" ")),
    statusOf,
    ended: async (id: string): Promise<Status> => {
      const state = async () => (await statusOf(id)).state;
      await expect.poll(state, { timeout: 30_000 }).toBe("CONTAINER_EXITED");
      return await statusOf(id);
    },
    /** What runs in a container's cgroup. */
    running: async (id: string): Promise<number[]> => {
      const file = `/sys/fs/cgroup/memory/${cgroups}/${id}/cgroup.procs`;
      const pids = (await readFile(file, "utf8").catch(() => "")).split("\n").filter((line) => line !== "");
      return pids.map(Number).filter((pid) => !["Z", undefined].includes(readProcess(pid)?.state));
    },
    killShim: async ({ id }: Pod): Promise<void> => {
      const { stdout } = await outcome(["pgrep", "-o", "-f", `containerd-shim-.* -id ${id}`]);
      process.kill(Number(stdout), "SIGKILL");
    },
    memoryLimit: async (id: string) =>
      Number(await readFile(`/sys/fs/cgroup/memory/${cgroups}/${id}/memory.limit_in_bytes`, "utf8")),
    remains: () => remains(daemon),
  };
};

/** What a shim's death comes to, by a container that runs until it is ended. */
const deathTests = (
  pods: ReturnType<typeof shimPods>,
  lasting: (name: string) => ReturnType<typeof containerConfig>,
): void => {
  test("a shim that is killed with the daemon is found dead, and its pod can be removed", async () => {
    const other = await pods.run();
    const id = await pods.startIn(other, lasting("with"));
    await pods.daemon().end("SIGKILL");
    await pods.killShim(other);
    await pods.daemon().start();
    expect(await pods.ended(id)).toMatchObject({ exitCode: 137 });
    expect(await pods.running(id)).toEqual([]);
    await pods.removePod(other.id);
  });

  test("a shim that is killed ends its pod, whose containers do not run on", async () => {
    const other = await pods.run();
    const id = await pods.startIn(other, lasting("orphan"));
    expect(await pods.running(id)).not.toEqual([]);
    await pods.killShim(other);
    expect(await pods.ended(id)).toMatchObject({ exitCode: 137 });
    await expect.poll(() => pods.running(id), { timeout: 30_000 }).toEqual([]);
    await pods.removePod(other.id);
  });
};

describe.runIf(built("containerd-shim-runc-v2-rs"))("containerd's shim for runc in Rust", () => {
  const pods = shimPods("rust", 96, {
    binary: tool("containerd-shim-runc-v2-rs"),
    optionsTypeUrl: "containerd.runc.v1.Options",
    wall: "namespaces",
  });
  let pod: Pod;
  beforeAll(async () => {
    pod = await pods.run();
  });

  test("output is logged, commands are executed with and without a terminal, and one shim serves the pod", async () => {
    const id = await pods.startIn(pod, containerConfig("talks", "echo out; echo err >&2; exec sleep 1000"));
    await expect.poll(() => pods.log(pod, "talks")).toEqual(expect.arrayContaining(["stdout F out"]));
    expect(await pods.log(pod, "talks")).toContain("stderr F err");
    expect(await pods.execute(id, "cat /proc/1/comm")).toBe("sleep\n");
    const { stderr } = await pods.daemon().tryCrictl("exec", id, "sh", "-c", "exit 7");
    expect(stderr).toMatch(/exit(ed with)? code 7/);
    await pods.startIn(
      pod,
      containerConfig("terminal", "test -t 0 && tty", busybox, { tty: true, stdin: true }),
    );
    await expect
      .poll(() => pods.log(pod, "terminal"))
      .toContainEqual(expect.stringMatching(/\/dev\/(pts|console)/));
    const second = await pods.startIn(pod, containerConfig("beside", "exec sleep 1001"));
    expect(await pods.execute(second, "hostname")).toBe(await pods.execute(id, "hostname"));
  });

  test("limits stand, are changed, are accounted, and end who is over them", async () => {
    const limited = { linux: { resources: { memory_limit_in_bytes: 64 << 20 } } };
    const id = await pods.startIn(pod, containerConfig("limited", "exec sleep 1000", busybox, limited));
    expect(await pods.memoryLimit(id)).toBe(64 << 20);
    await pods.daemon().crictl("update", "--memory", String(96 << 20), id);
    expect(await pods.memoryLimit(id)).toBe(96 << 20);
    const { stats } = JSON.parse(await pods.daemon().crictl("stats", "-o", "json", "--id", id));
    expect(Number(stats[0].memory.usageBytes.value)).toBeGreaterThan(0);
    const oom = await pods.startIn(pod, containerConfig("oom", "tail /dev/zero", busybox, limited));
    expect(await pods.ended(oom)).toMatchObject({ exitCode: 137, reason: "OOMKilled" });
  });

  test.each([
    ["Completed", 0],
    ["Error", 42],
  ])("a container ends as %s with %i", async (reason, exitCode) => {
    const id = await pods.startIn(pod, containerConfig(`ends-${exitCode}`, `exit ${exitCode}`));
    expect(await pods.ended(id)).toMatchObject({ exitCode, reason });
  });

  test("a command that is not there is told in runc's words", async () => {
    const missing = containerConfig("missing", "", busybox, { command: ["/no/such/program"] });
    await expect(pods.startIn(pod, missing)).rejects.toThrow(/no\/such\/program/);
  });

  test("SIGTERM ends who listens to it, and the rest are killed", async () => {
    const polite = await pods.startIn(
      pod,
      containerConfig("polite", "trap 'exit 3' TERM; while :; do sleep 0.1; done"),
    );
    await pods.daemon().crictl("stop", "--timeout", "10", polite);
    expect(await pods.statusOf(polite)).toMatchObject({ exitCode: 3 });
    const stubborn = await pods.startIn(
      pod,
      containerConfig("stubborn", "trap '' TERM; while :; do sleep 0.1; done"),
    );
    await pods.daemon().crictl("stop", "--timeout", "1", stubborn);
    expect(await pods.statusOf(stubborn)).toMatchObject({ exitCode: 137 });
  });

  test("after a kill -9 of the daemon containers run on, are known again, and tell how they end", async () => {
    const count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done";
    const runs = await pods.startIn(pod, containerConfig("runs", count));
    const ends = await pods.startIn(pod, containerConfig("ends", "sleep 1; exit 9"));
    await pods.daemon().end("SIGKILL");
    await new Promise((resolve) => setTimeout(resolve, 1500));
    await pods.daemon().start();
    expect(await pods.ended(ends)).toMatchObject({ exitCode: 9 });
    expect(await pods.statusOf(runs)).toMatchObject({ state: "CONTAINER_RUNNING" });
    expect(await pods.execute(runs, "echo again")).toBe("again\n");
    const numbers = (await pods.log(pod, "runs"))
      .filter((line) => line.startsWith("stdout F "))
      .map((line) => Number(line.slice(9)));
    expect(numbers.length).toBeGreaterThan(15);
    expect(numbers).toEqual(numbers.map((_, at) => at + 1));
    await pods.daemon().crictl("stop", "--timeout", "0", runs);
    expect(await pods.statusOf(runs)).toMatchObject({ exitCode: 137 });
  });

  deathTests(pods, (name) => containerConfig(name, "exec sleep 4322"));

  test("nothing is left of its pods", async () => {
    await pods.removePod(pod.id);
    expect(await pods.remains()).toEqual([]);
  });
});

describe.runIf(built("containerd-shim-wasmi-v1"))("runwasi's shim", () => {
  const pods = shimPods("wasm", 97, { binary: tool("containerd-shim-wasmi-v1"), wall: "namespaces" });
  let pod: Pod;
  let modules: Fields;
  beforeAll(async () => {
    const directory = join(pods.scratch(), "modules");
    await mkdir(directory);
    for (const [name, text] of Object.entries(wat)) await writeFile(join(directory, `${name}.wat`), text);
    modules = { mounts: [{ container_path: "/modules", host_path: directory, readonly: true }] };
    pod = await pods.run();
  });
  const module = (name: keyof typeof wat, fields: Fields = {}, ...args: string[]) =>
    containerConfig(name, "", busybox, { command: [`/modules/${name}.wat`, ...args], ...modules, ...fields });

  test("a module's output is its log, and its exit code the container's", async () => {
    const id = await pods.startIn(pod, module("hello"));
    expect(await pods.ended(id)).toMatchObject({ exitCode: 7, reason: "Error" });
    const log = await pods.log(pod, "hello");
    expect(log).toContain("stdout F hello from WebAssembly");
    expect(log).toContain("stderr F and on standard error");
  });

  test("a module that waits is accounted, has its limit, and is killed at the end of its grace", async () => {
    const limit = { linux: { resources: { memory_limit_in_bytes: 64 << 20 } } };
    const id = await pods.startIn(pod, module("waits", limit));
    expect(await pods.memoryLimit(id)).toBe(64 << 20);
    const { stats } = JSON.parse(await pods.daemon().crictl("stats", "-o", "json", "--id", id));
    expect(Number(stats[0].memory.usageBytes.value)).toBeGreaterThan(0);
    await expect(pods.execute(id, "true")).rejects.toThrow(/Exec is not supported/);
    await pods.daemon().crictl("stop", "--timeout", "1", id);
    expect(await pods.statusOf(id)).toMatchObject({ exitCode: 137 });
  });

  test("a module that is over its limit is out of memory", async () => {
    const limit = { linux: { resources: { memory_limit_in_bytes: 64 << 20 } } };
    const id = await pods.startIn(pod, module("grows", limit));
    expect(await pods.ended(id)).toMatchObject({ exitCode: 137, reason: "OOMKilled" });
  });

  test("beside it runs a container that is none of WebAssembly", async () => {
    const id = await pods.startIn(pod, containerConfig("linux", "echo $((6*7)); exit 5"));
    expect(await pods.ended(id)).toMatchObject({ exitCode: 5 });
    expect(await pods.log(pod, "linux")).toContain("stdout F 42");
  });

  test("after a kill -9 of the daemon a module runs on, is known again, and others are made", async () => {
    const id = await pods.startIn(pod, module("waits", { metadata: { name: "on", attempt: 1 } }));
    await pods.daemon().end("SIGKILL");
    await pods.daemon().start();
    expect(await pods.statusOf(id)).toMatchObject({ state: "CONTAINER_RUNNING" });
    const next = await pods.startIn(pod, module("hello", { metadata: { name: "next", attempt: 1 } }));
    expect(await pods.ended(next)).toMatchObject({ exitCode: 7 });
    await pods.daemon().crictl("stop", "--timeout", "0", id);
    expect(await pods.statusOf(id)).toMatchObject({ exitCode: 137 });
  });

  deathTests(pods, (name) => module("waits", { metadata: { name, attempt: 2 } }));

  test("nothing is left of its pods", async () => {
    await pods.removePod(pod.id);
    expect(await pods.remains()).toEqual([]);
  });
});
