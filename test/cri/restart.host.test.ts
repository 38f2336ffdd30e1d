import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { processesIn } from "../../runtime/src/handler/shim/processes.ts";
import { fakeShim } from "../../runtime/src/handler/shim/test-host.ts";
import { ensureTestImages } from "../images/build.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { inCache, tool } from "../tools/cache.ts";
import { createDaemon, type Daemon, remains } from "./daemon.ts";

const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

let scratch: string;
let registry: RunningRegistry;
let daemon: Daemon;
let serial = 0;

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "bh-restart-"));
  registry = await startRegistry({ dir: inCache("cri-registry") });
  await ensureTestImages(registry.host, ["e2e-test-images/busybox:1.29-2"]);
  daemon = await createDaemon({ registry: registry.host, subnet: 94 });
  await daemon.start();
  await daemon.crictl("pull", busybox);
});
afterAll(async () => {
  await daemon?.[Symbol.asyncDispose]();
  await registry?.stop();
  await rm(scratch, { recursive: true, force: true });
});
beforeEach(() => {
  serial++;
});

const podFile = async (): Promise<string> => {
  const path = join(scratch, `pod-${serial}.json`);
  const logs = join(scratch, `logs-${serial}`);
  await mkdir(logs, { recursive: true });
  await writeFile(
    path,
    JSON.stringify({
      metadata: { name: `pod-${serial}`, namespace: "test", uid: `uid-${serial}`, attempt: 0 },
      log_directory: logs,
      linux: { security_context: { namespace_options: { pid: 1 } } },
    }),
  );
  return path;
};

const containerFile = async (script: string): Promise<string> => {
  const path = join(scratch, `container-${serial}.json`);
  await writeFile(
    path,
    JSON.stringify({
      metadata: { name: "main", attempt: 0 },
      image: { image: busybox },
      command: ["sh", "-c", script],
      log_path: "main.log",
    }),
  );
  return path;
};

/** A running container of its own pod. */
const running = async (script: string, handler = "runc"): Promise<{ pod: string; container: string }> => {
  const podConfig = await podFile();
  const pod = (await daemon.crictl("runp", "-r", handler, podConfig)).trim();
  const container = (await daemon.crictl("create", pod, await containerFile(script), podConfig)).trim();
  await daemon.crictl("start", container);
  return { pod, container };
};

type Status = { state: string; exitCode?: number; reason?: string; finishedAt?: string };
const statusOf = async (container: string): Promise<Status> =>
  (JSON.parse(await daemon.crictl("inspect", "-o", "json", container)) as { status: Status }).status;

const clean = async (): Promise<void> => {
  const ids = (await daemon.crictl("pods", "-q")).split("\n").filter((id) => id !== "");
  if (ids.length > 0) await daemon.crictl("rmp", "-f", ...ids);
  expect(await remains(daemon)).toEqual([]);
};

test.each([
  ["SIGTERM", "runc"],
  ["SIGKILL", "runc"],
  ["SIGTERM", "gvisor"],
  ["SIGKILL", "gvisor"],
] as const)("a running container runs on over %s of the daemon, with %s", async (signal, handler) => {
  const { container } = await running("while :; do echo tick; sleep 0.2; done", handler);
  await daemon.end(signal);
  await daemon.start();
  expect((await statusOf(container)).state).toBe("CONTAINER_RUNNING");
  expect(await daemon.crictl("exec", container, "echo", "still here")).toContain("still here");
  await clean();
});

test.each(["runc", "gvisor"])(
  "an exit while the daemon is away is known afterwards with its code, and no log line is lost, with %s",
  async (handler) => {
    const { container } = await running(
      "for i in $(seq 1 20); do echo line $i; sleep 0.1; done; exit 7",
      handler,
    );
    await daemon.end("SIGKILL");
    await sleep(3_000);
    await daemon.start();
    expect(await statusOf(container)).toMatchObject({
      state: "CONTAINER_EXITED",
      exitCode: 7,
      reason: "Error",
    });
    const lines = (await daemon.crictl("logs", container)).trim().split("\n");
    expect(lines).toEqual(Array.from({ length: 20 }, (_, index) => `line ${index + 1}`));
    await clean();
  },
);

test("kill -9 in the middle of RunPodSandbox leaves a pod that can be removed, and nothing else", async () => {
  const podConfig = await podFile();
  for (const wait of [5, 20, 40, 80, 120]) {
    const runp = spawn(
      tool("crictl"),
      ["--runtime-endpoint", `unix://${daemon.socket}`, "--timeout", "60s", "runp", podConfig],
      {
        stdio: "ignore",
      },
    );
    const ended = once(runp, "exit");
    await sleep(wait);
    await daemon.end("SIGKILL");
    await ended;
    await daemon.start();
    await clean();
  }
});

test("kill -9 in the middle of CreateContainer leaves no container and no mount", async () => {
  const podConfig = await podFile();
  const pod = (await daemon.crictl("runp", podConfig)).trim();
  const config = await containerFile("sleep 1000");
  for (const wait of [10, 30, 60, 90]) {
    const create = spawn(
      tool("crictl"),
      ["--runtime-endpoint", `unix://${daemon.socket}`, "--timeout", "60s", "create", pod, config, podConfig],
      { stdio: "ignore" },
    );
    const ended = once(create, "exit");
    await sleep(wait);
    await daemon.end("SIGKILL");
    await ended;
    await daemon.start();
    const left = (await daemon.crictl("ps", "-aq")).split("\n").filter((id) => id !== "");
    if (left.length > 0) await daemon.crictl("rm", "-f", ...left);
    expect((await remains(daemon)).filter((name) => name === "rootfs")).toEqual([]);
  }
  await clean();
});

test("the same pod again while it is there fails with a message that names the reservation", async () => {
  const podConfig = await podFile();
  await daemon.crictl("runp", podConfig);
  const again = await daemon.tryCrictl("runp", podConfig);
  expect(again.code).not.toBe(0);
  expect(again.stderr).toContain("the name is reserved for");
  await clean();
});

test("a handler that is not configured is refused by name", async () => {
  const { code, stderr } = await daemon.tryCrictl("runp", "-r", "nope", await podFile());
  expect(code).not.toBe(0);
  expect(stderr.replaceAll('\\"', '"')).toContain('no runtime for "nope" is configured');
  await clean();
});

test("a handler file takes effect at once, and a bad one keeps the last good version and is reported", async () => {
  const file = join(daemon.handlersDir, "other.yaml");
  await writeFile(file, `name: other\nkind: oci\nbinary: ${tool("runc")}\n`);
  const handlers = async () => JSON.parse(await daemon.crictl("info")) as Record<string, unknown>;
  await expect.poll(async () => JSON.stringify(await handlers())).toContain("other");
  const pod = (await daemon.crictl("runp", "-r", "other", await podFile())).trim();
  await writeFile(file, "name: other\nkind: oci\nbinary: relative\n");
  await expect.poll(() => readFile(daemon.logFile, "utf8")).toContain("must be an absolute path");
  expect(JSON.stringify(await handlers())).toContain("must be an absolute path");
  expect((await daemon.crictl("pods", "-q", "--state", "Ready")).trim()).toBe(pod);
  await rm(file);
  await clean();
});

/** A handler whose program is a script of the test's own, which ends by becoming runc. */
const scripted = async (name: string, script: string): Promise<string> => {
  const program = join(scratch, name);
  await writeFile(program, `#!/bin/sh\n${script}\nexec ${tool("runc")} "$@"\n`, { mode: 0o755 });
  await writeFile(join(daemon.handlersDir, `${name}.yaml`), `name: ${name}\nkind: oci\nbinary: ${program}\n`);
  await expect.poll(() => daemon.crictl("info")).toContain(program);
  return program;
};

test("pods whose handler cannot be set up at a start run on, and are taken up with their exit codes when it can", async () => {
  const program = await scripted("late", ":");
  const { pod, container } = await running(
    "trap 'echo bye; exit 7' TERM; while :; do sleep 0.1; done",
    "late",
  );
  const { info } = JSON.parse(await daemon.crictl("inspect", "-o", "json", container)) as {
    info: { pid: number };
  };
  await daemon.end("SIGKILL");
  await rename(program, `${program}.away`);
  await daemon.start();
  expect((await daemon.crictl("pods", "-q", "--no-trunc", "--state", "Ready")).trim()).toBe(pod);
  expect((await statusOf(container)).state).toBe("CONTAINER_RUNNING");
  expect((await daemon.tryCrictl("exec", "-s", container, "true")).stderr).toContain(
    "could not be set up again",
  );
  process.kill(info.pid, "SIGTERM");
  await rename(`${program}.away`, program);
  await expect.poll(async () => (await statusOf(container)).exitCode, { timeout: 15_000 }).toBe(7);
  expect((await daemon.crictl("logs", container)).trim()).toBe("bye");
  await clean();
  // The handler is there again for new pods without anybody's doing.
  await expect.poll(() => daemon.crictl("info"), { timeout: 15_000 }).not.toContain("ENOENT");
  serial++;
  await running("sleep 60", "late");
  await clean();
  await rm(join(daemon.handlersDir, "late.yaml"));
});

/** The processes of a pod's shim. */
const shimsOf = (pod: string): number[] =>
  processesIn(join(daemon.state, "pods", pod, "sandbox", pod))
    .map(({ pid }) => pid)
    .filter((pid) => readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("containerd-shim"));

test("a pod whose shim hangs when the daemon starts stays, over kill -9 too, and is taken up with its exit codes when it answers", async () => {
  const { pod, container } = await running("until [ -e /end ]; do sleep 0.1; done; exit 7", "gvisor");
  const shims = shimsOf(pod);
  expect(shims.length).toBeGreaterThan(0);
  await daemon.crictl("exec", container, "sh", "-c", "(sleep 2; touch /end) >/dev/null 2>&1 &");
  for (const pid of shims) process.kill(pid, "SIGSTOP");
  try {
    for (let starts = 0; starts < 2; starts++) {
      await daemon.end("SIGKILL");
      await daemon.start();
      expect((await daemon.crictl("pods", "-q", "--no-trunc", "--state", "Ready")).trim()).toBe(pod);
      expect((await statusOf(container)).state).toBe("CONTAINER_RUNNING");
      const { stderr } = await daemon.tryCrictl("exec", "-s", container, "true");
      expect(stderr).toMatch(/DeadlineExceeded.*shim has not answered since the daemon's start/);
    }
  } finally {
    for (const pid of shims) process.kill(pid, "SIGCONT");
  }
  await expect.poll(async () => (await statusOf(container)).exitCode, { timeout: 120_000 }).toBe(7);
  await clean();
}, 240_000);

test("a pod whose shim hangs when the daemon starts can be removed", async () => {
  const { pod, container } = await running("sleep 1000", "gvisor");
  const shims = shimsOf(pod);
  await daemon.end("SIGKILL");
  for (const pid of shims) process.kill(pid, "SIGSTOP");
  await daemon.start();
  expect((await statusOf(container)).state).toBe("CONTAINER_RUNNING");
  await daemon.crictl("--timeout", "120s", "rmp", "-f", pod);
  await clean();
}, 240_000);

/** Whatever has its working directory in the pod's bundle: its shim. */
const stopShimOf = (pod: string): void => {
  const shims = processesIn(join(daemon.state, "pods", pod, "sandbox", pod));
  expect(shims.length).toBeGreaterThan(0);
  for (const { pid } of shims) process.kill(pid, "SIGSTOP");
};

test("a container whose shim hangs is logged whole and once over kill -9 of the daemon, and ended by one StopContainer", async () => {
  const binary = fakeShim(scratch);
  const handler = { name: "fake", kind: "shim", binary, wall: "namespaces", deadlines: { stop: 3 } };
  await writeFile(join(daemon.handlersDir, "fake.yaml"), JSON.stringify(handler));
  await expect.poll(() => daemon.crictl("info")).toContain(binary);
  const line = "x".repeat(57);
  const write = `for n in $(seq 1 400); do echo "$i $n ${line}"; done; sleep 0.1`;
  const { pod, container } = await running(
    `for i in $(seq 1 40); do ${write}; done; exec sleep 1000`,
    "fake",
  );
  stopShimOf(pod);
  for (let kills = 0; kills < 2; kills++) {
    await sleep(500);
    await daemon.end("SIGKILL");
    await daemon.start();
  }
  const log = async () =>
    (await readFile(join(scratch, `logs-${serial}`, "main.log"), "utf8"))
      .trimEnd()
      .split("\n")
      .map((each) => each.split(" ").slice(1, 5).join(" "));
  await expect.poll(async () => (await log()).at(-1), { timeout: 60_000 }).toBe("stdout F 40 400");
  const expected = Array.from(
    { length: 16_000 },
    (_, n) => `stdout F ${Math.floor(n / 400) + 1} ${(n % 400) + 1}`,
  );
  expect(await log()).toEqual(expected);
  await daemon.crictl("stop", "--timeout", "1", container);
  expect(await statusOf(container)).toMatchObject({ state: "CONTAINER_EXITED", exitCode: 137 });
  await clean();
  // The same in the life of the daemon in which its shim stops answering.
  serial++;
  const other = await running("exec sleep 1000", "fake");
  stopShimOf(other.pod);
  await daemon.crictl("stop", "--timeout", "1", other.container);
  expect(await statusOf(other.container)).toMatchObject({ state: "CONTAINER_EXITED", exitCode: 137 });
  await clean();
  await rm(join(daemon.handlersDir, "fake.yaml"));
}, 240_000);

test("a shim that takes a connection and then says nothing keeps the daemon from nobody at its start, and its pod can be removed", async () => {
  const binary = join(scratch, "containerd-shim-mute-v1");
  const fake = `#!/bin/sh\nFAKE_SHIM=state-hangs exec '${fakeShim(scratch)}' "$@"\n`;
  await writeFile(binary, fake, { mode: 0o755 });
  const handler = { name: "mute", kind: "shim", binary, wall: "namespaces" };
  await writeFile(join(daemon.handlersDir, "mute.yaml"), JSON.stringify(handler));
  await expect.poll(() => daemon.crictl("info")).toContain(binary);
  const other = await running("exec sleep 1000");
  serial++;
  const mute = await running("exec sleep 1000", "mute");
  await daemon.end("SIGKILL");
  const before = (await readFile(daemon.logFile, "utf8")).length;
  await daemon.start();
  const log = (await readFile(daemon.logFile, "utf8")).slice(before);
  expect(log).toContain("pods are taken up while the others are served");
  expect(log).not.toContain("what holds the pod does not answer");
  expect((await statusOf(mute.container)).state).toBe("CONTAINER_RUNNING");
  expect(await daemon.crictl("exec", other.container, "echo", "still here")).toContain("still here");
  await daemon.crictl("--timeout", "120s", "stop", "--timeout", "1", mute.container);
  expect(await statusOf(mute.container)).toMatchObject({ state: "CONTAINER_EXITED", exitCode: 137 });
  await clean();
  await rm(join(daemon.handlersDir, "mute.yaml"));
}, 240_000);

test("a creation that could not be rolled back says what failed first, and the next try clears it away", async () => {
  const broken = join(scratch, "broken");
  const fails = `if [ -e ${broken} ]; then
  for each; do [ "$before" = --root ] && root=$each; before=$each; done
  case " $* " in
    *" create "*) mkdir -p "$root/$each"; echo broken by order >&2; exit 1 ;;
    *" delete "*) exit 1 ;;
  esac
fi`;
  await scripted("stuck", fails);
  const podConfig = await podFile();
  const pod = (await daemon.crictl("runp", "-r", "stuck", podConfig)).trim();
  const file = await containerFile("exit 0");
  await writeFile(broken, "");
  expect((await daemon.tryCrictl("create", pod, file, podConfig)).stderr).toContain("broken by order");
  // It cannot be taken away now either.
  expect((await daemon.tryCrictl("create", pod, file, podConfig)).code).not.toBe(0);
  await rm(broken);
  await daemon.crictl("start", (await daemon.crictl("create", pod, file, podConfig)).trim());
  await clean();
  expect(await remains(daemon)).toEqual([]);
  await rm(join(daemon.handlersDir, "stuck.yaml"));
});

test("records that cannot be read, as after a downgrade, cost nothing of what they are of", async () => {
  const { pod, container } = await running("while :; do echo tick; sleep 0.1; done");
  await daemon.end("SIGKILL");
  const files = [`pods/${pod}.json`, `containers/${container}.json`].map((name) =>
    join(daemon.state, "records", name),
  );
  const before = await Promise.all(files.map((file) => readFile(file, "utf8")));
  const rewrite = (text: (n: number) => string) =>
    Promise.all(files.map((file, n) => writeFile(file, text(n))));
  for (const odd of [
    (n: number): string => before[n]!.replace('"version":1', '"version":2'),
    (n: number): string => (n === 0 ? "" : before[n]!),
  ]) {
    await rewrite(odd);
    await daemon.start();
    expect((await daemon.crictl("pods", "-q")).trim()).toBe("");
    await daemon.end("SIGKILL");
  }
  await rewrite((n) => before[n]!);
  await daemon.start();
  expect((await daemon.crictl("pods", "-q", "--no-trunc", "--state", "Ready")).trim()).toBe(pod);
  // Its root file system, network and monitor are there.
  expect((await daemon.crictl("exec", "-s", container, "cat", "/etc/hostname")).trim()).not.toBe("");
  const ticks = async () => (await daemon.crictl("logs", container)).split("\n").length;
  const now = await ticks();
  await expect.poll(ticks).toBeGreaterThan(now);
  await clean();
  expect(await remains(daemon)).toEqual([]);
});
