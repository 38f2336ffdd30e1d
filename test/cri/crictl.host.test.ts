import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readFile, rm, rmdir, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { cgroupDirs } from "../cluster/mounts.ts";
import { ensureTestImages } from "../images/build.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { inCache, tool } from "../tools/cache.ts";
import { createDaemon, type Daemon, remains } from "./daemon.ts";

/** crictl 1.34, every command and output format, against the daemon alone: what it says, not only that it ends well. */
const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
const cgroups = `bh-crictl-${process.pid}`;
const imageId = expect.stringMatching(/^sha256:[\da-f]{64}$/);

let scratch: string;
let registry: RunningRegistry;
let closed: RunningRegistry;
let daemon: Daemon;
let pod: string;
let container: string;
let id: string;

const file = async (name: string, content: object): Promise<string> => {
  const path = join(scratch, name);
  await writeFile(path, JSON.stringify(content));
  return path;
};
const podConfig = (name: string) =>
  file(`${name}.json`, {
    metadata: { name, namespace: "shop", uid: `uid-${name}`, attempt: 1 },
    labels: { app: name },
    annotations: { note: "kept" },
    log_directory: scratch,
    linux: { cgroup_parent: `/${cgroups}/${name}` },
  });
const containerConfig = (name: string, script: string, more: object = {}) =>
  file(`${name}.json`, {
    metadata: { name, attempt: 2 },
    image: { image: busybox },
    command: ["sh", "-c", script],
    log_path: `${name}.log`,
    labels: { tier: name, "io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "shop" },
    linux: { resources: { memory_limit_in_bytes: 64 << 20 } },
    ...more,
  });
const crictl = (...args: string[]): Promise<string> => daemon.crictl(...args);
const json = async (...args: string[]): Promise<unknown> => {
  const [command = "", ...rest] = args;
  return JSON.parse(await crictl(command, "-o", "json", ...rest));
};
const lines = (text: string): string[] => text.split("\n").filter((line) => line.trim() !== "");
const serve = "echo out1; echo err1 >&2; echo out2; while :; do echo pong | nc -l -p 8080; done";

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "bh-crictl-"));
  registry = await startRegistry({ dir: inCache("cri-registry") });
  await ensureTestImages(registry.host, ["e2e-test-images/busybox:1.29-2"]);
  const dir = join(scratch, "closed");
  await mkdir(dir);
  const htpasswd = join(dir, "htpasswd");
  await writeFile(htpasswd, "walled:$2y$04$5AhJo.lRtKUvy4y4BjD6eeR7aYUfUL9kH016.kmJYKptudCQJZ.LK\n");
  closed = await startRegistry({ dir, htpasswd });
  daemon = await createDaemon({ registry: registry.host, subnet: 93 });
  await daemon.start();
  expect(await crictl("pull", busybox)).toMatch(/^Image is up to date for sha256:[\da-f]{64}/);
  pod = await podConfig("web");
  id = (await crictl("runp", "--runtime", "runc", pod)).trim();
  const created = await crictl("create", "--no-pull", id, await containerConfig("main", serve), pod);
  container = created.trim();
  expect(lines(await crictl("ps", "-a", "-q", "--state", "Created"))).toEqual([container]);
  expect((await crictl("start", container)).trim()).toBe(container);
});
afterAll(async () => {
  await daemon?.[Symbol.asyncDispose]();
  await registry?.stop();
  await closed?.stop();
  // The parent that a pod names is its caller's to remove.
  for (const path of [`${cgroups}/web`, `${cgroups}/short`, cgroups])
    for (const dir of await cgroupDirs(path)) await rmdir(dir);
  await rm(scratch, { recursive: true, force: true });
});

/** crictl that goes on running. */
class Running implements AsyncDisposable {
  readonly child: ChildProcessWithoutNullStreams;
  text = "";
  constructor(args: string[], terminal = false) {
    const argv = [
      tool("crictl"),
      "--runtime-endpoint",
      `unix://${daemon.socket}`,
      "--timeout",
      "60s",
      ...args,
    ];
    this.child = terminal
      ? spawn("script", ["-qefc", argv.map((each) => `'${each}'`).join(" "), "/dev/null"])
      : spawn(argv[0] ?? "", argv.slice(1));
    for (const stream of [this.child.stdout, this.child.stderr])
      stream.setEncoding("utf8").on("data", (chunk: string) => {
        this.text += chunk;
      });
  }
  async shows(pattern: RegExp): Promise<RegExpMatchArray> {
    await expect.poll(() => this.text, { timeout: 50_000 }).toMatch(pattern);
    return this.text.match(pattern) as RegExpMatchArray;
  }
  async ends(): Promise<number | null> {
    if (this.child.exitCode === null && this.child.signalCode === null) await once(this.child, "close");
    return this.child.exitCode;
  }
  async [Symbol.asyncDispose]() {
    this.child.kill("SIGTERM");
    await this.ends();
  }
}

describe("the runtime", () => {
  test("version names it", async () => {
    expect(await crictl("version")).toMatch(/RuntimeName: {2}bulkhead\n.*\nRuntimeApiVersion: {2}v1/);
  });

  test("info says what is ready, and verbosely what is in force, in every format", async () => {
    const info = (await json("info")) as Record<string, Record<string, unknown>>;
    expect(info).toMatchObject({
      status: {
        conditions: [
          { type: "RuntimeReady", status: true },
          { type: "NetworkReady", status: true },
        ],
      },
      config: { defaultHandler: "runc", socket: daemon.socket },
      handlers: { runc: { kind: "oci" }, gvisor: { kind: "shim", wall: "kernel" } },
      handlerProblems: {},
    });
    expect(Object.keys((await json("info", "-q")) as object)).not.toContain("config");
    expect(await crictl("info", "-o", "yaml")).toContain("defaultHandler: runc\n");
    const template = "{{range .status.conditions}}[{{.type}}]{{end}}";
    expect(await crictl("info", "-o", "go-template", "--template", template)).toContain(
      "[RuntimeReady][NetworkReady]",
    );
  });

  test("runtime-config, update-runtime-config, config and completion", async () => {
    expect(await crictl("runtime-config")).toMatch(/cgroup driver: +CGROUPFS/);
    expect((await daemon.tryCrictl("update-runtime-config", "--pod-cidr", "10.1.0.0/16")).code).toBe(0);
    const path = join(scratch, "crictl.yaml");
    await writeFile(path, "");
    await crictl("--config", path, "config", "--set", "timeout=7");
    expect((await crictl("--config", path, "config", "--get", "timeout")).trim()).toBe("7");
    expect(await crictl("--config", path, "config", "--list")).toMatch(/timeout +7/);
    for (const shell of ["bash", "zsh", "fish"])
      expect(await crictl("completion", shell)).toContain("runtime-config");
  });
});

describe("images", () => {
  test("images lists in every format, and filters", async () => {
    expect(await json("images")).toMatchObject({
      images: [{ id: imageId, repoTags: [busybox], pinned: false }],
    });
    expect(await crictl("images", "-o", "yaml")).toContain(`- ${busybox}\n`);
    expect(lines(await crictl("images", "-q"))).toEqual([imageId]);
    const table = await crictl("images", "--no-trunc", "--digests", "--pinned", "-o", "table");
    expect(table).toMatch(/busybox +1\.29-2 +sha256:[\da-f]{64} +sha256:[\da-f]{64} +[\d.]+MB +false/);
    expect(await crictl("images", "-v")).toMatch(/RepoDigests: .*busybox@sha256:.*\nSize: \d+/);
    expect(lines(await crictl("images", "-q", "-f", "dangling=true"))).toEqual([]);
    expect(lines(await crictl("images", "-q", "-f", "reference=.*busy.*"))).toEqual([imageId]);
    expect(lines(await crictl("images", "-q", "no-such-image"))).toEqual([]);
  });

  test("inspecti shows the configuration of an image in every format", async () => {
    expect(await json("inspecti", busybox)).toMatchObject({
      status: { id: imageId, repoTags: [busybox], size: expect.stringMatching(/^\d+$/) },
      info: { imageSpec: { config: { cmd: ["sh"] } } },
    });
    expect(await crictl("inspecti", "-o", "yaml", busybox)).toContain("imageSpec:");
    expect(await crictl("inspecti", "-o", "table", busybox)).toContain(`Tag: ${busybox}\n`);
    const template = ["-o", "go-template", "--template", "{{.status.id}}"];
    expect((await crictl("inspecti", ...template, busybox)).trim()).toEqual(imageId);
    expect((await json("inspecti", "-q", busybox)) as object).not.toHaveProperty("info.imageSpec");
    expect((await daemon.tryCrictl("inspecti", "absent:1")).stderr).toContain("no such image");
  });

  test("imagefsinfo tells what images take, in every format", async () => {
    const info = (await json("imagefsinfo")) as { status: { imageFilesystems: object[] } };
    const [filesystem] = info.status.imageFilesystems as {
      usedBytes: { value: string };
      fsId: { mountpoint: string };
    }[];
    expect(Number(filesystem?.usedBytes.value)).toBeGreaterThan(1_000_000);
    const mountpoint = filesystem?.fsId.mountpoint ?? "";
    expect(mountpoint).toMatch(/^\//);
    for (const format of ["yaml", "table"])
      expect(await crictl("imagefsinfo", "-o", format)).toContain(mountpoint);
    const template = "{{range .status.imageFilesystems}}{{.fsId.mountpoint}}{{end}}";
    expect(await crictl("imagefsinfo", "-o", "go-template", "--template", template)).toContain(mountpoint);
  });

  test("pull says by whom it was refused, and what is not there", async () => {
    const refused = await daemon.tryCrictl(
      "pull",
      "--creds",
      "walled:wrong",
      `${closed.host}/private/image:1`,
    );
    expect(refused.code).not.toBe(0);
    expect(refused.stderr).toMatch(new RegExp(`${closed.host}.*401`));
    expect(refused.stderr).not.toContain("wrong");
    const absent = await daemon.tryCrictl("pull", `${registry.host}/absent:1`);
    expect(absent.stderr).toMatch(/code = NotFound.*404 \(manifest unknown\)/);
    expect((await daemon.tryCrictl("pull", "NOT A REFERENCE")).stderr).toContain("code = InvalidArgument");
  });
});

describe("pods and containers", () => {
  test("pods lists in every format, and filters", async () => {
    expect(await json("pods")).toMatchObject({
      items: [{ id, metadata: { name: "web", namespace: "shop", attempt: 1 }, runtimeHandler: "runc" }],
    });
    expect(await crictl("pods", "-o", "yaml")).toContain(`id: ${id}`);
    expect(await crictl("pods", "--no-trunc")).toMatch(new RegExp(`${id} .* Ready +web +shop +1 +runc`));
    expect(await crictl("pods", "-v")).toMatch(/Status: Ready[\s\S]*app -> web[\s\S]*note -> kept/);
    for (const filter of [
      ["--id", id.slice(0, 12)],
      ["--name", "^web$"],
      ["--namespace", "shop"],
      ["--label", "app=web"],
      ["--state", "ready"],
      ["--latest"],
      ["--last", "3"],
    ])
      expect(lines(await crictl("pods", "-q", ...filter)), filter.join(" ")).toEqual([id]);
    for (const filter of [
      ["--id", "ffff"],
      ["--name", "^we$"],
      ["--label", "app=x"],
      ["--state", "notready"],
    ])
      expect(lines(await crictl("pods", "-q", ...filter)), filter.join(" ")).toEqual([]);
  });

  test("ps lists in every format, and filters", async () => {
    expect(await json("ps")).toMatchObject({
      containers: [
        { id: container, podSandboxId: id, state: "CONTAINER_RUNNING", image: { image: busybox } },
      ],
    });
    expect(await crictl("ps", "-o", "yaml")).toContain("state: CONTAINER_RUNNING");
    const row = new RegExp(`${container} +${busybox} .* Running +main +2 +${id} +web +shop`);
    expect(await crictl("ps", "--no-trunc", "-r")).toMatch(row);
    expect(await crictl("ps", "-v")).toMatch(/State: Running[\s\S]*tier -> main/);
    for (const filter of [
      ["--id", container.slice(0, 12)],
      ["--name", "^main$"],
      ["--image", busybox],
      ["--pod", id.slice(0, 12)],
      ["--namespace", "shop"],
      ["--label", "tier=main"],
      ["--state", "Running"],
      ["--latest"],
    ])
      expect(lines(await crictl("ps", "-q", ...filter)), filter.join(" ")).toEqual([container]);
    for (const filter of [
      ["--id", "ffff"],
      ["--name", "^x$"],
      ["--pod", "ffff"],
      ["--label", "tier=x"],
      ["--state", "Exited"],
    ])
      expect(lines(await crictl("ps", "-q", ...filter)), filter.join(" ")).toEqual([]);
  });

  test("inspect and inspectp show status and record in every format", async () => {
    expect(await json("inspect", container)).toMatchObject({
      status: {
        id: container,
        state: "CONTAINER_RUNNING",
        metadata: { name: "main", attempt: 2 },
        imageRef: expect.stringMatching(/busybox@sha256:[\da-f]{64}$/),
      },
      info: { pid: expect.any(Number), sandboxID: id },
    });
    expect(await json("inspectp", id)).toMatchObject({
      status: { id, state: "SANDBOX_READY", network: { ip: expect.stringMatching(/^10\.93\./) } },
    });
    for (const [command, of, row] of [
      ["inspect", container, "State: CONTAINER_RUNNING"],
      ["inspectp", id, "Status: SANDBOX_READY"],
    ] as const) {
      expect(await crictl(command, "-o", "yaml", of)).toContain(`id: ${of}`);
      expect(await crictl(command, "-o", "table", of)).toContain(row);
      const template = ["-o", "go-template", "--template", "{{.status.metadata.name}}"];
      expect((await crictl(command, ...template, of)).trim()).toBe(command === "inspect" ? "main" : "web");
      expect(await json(command, "-q", of)).not.toHaveProperty("info");
      const absent = await daemon.tryCrictl(command, "ffff");
      expect(absent.stderr).toMatch(/code = NotFound desc = Cannot find (container|pod sandbox) \\*"ffff/);
    }
  });

  test("stats, statsp, metricsp and metricdescs have figures in every format", async () => {
    const { stats } = (await json("stats")) as {
      stats: { memory: { workingSetBytes: { value: string } } }[];
    };
    expect(stats).toMatchObject([
      { attributes: { id: container, metadata: { name: "main" } }, writableLayer: { inodesUsed: {} } },
    ]);
    expect(Number(stats[0]?.memory.workingSetBytes.value)).toBeGreaterThan(100_000);
    const row = new RegExp(`${container.slice(0, 13)} +main +[\\d.]+ +[\\d.]+[kM]B +[\\d.]+k?B +\\d+`);
    expect(await crictl("stats", "--seconds", "1")).toMatch(row);
    expect(await crictl("stats", "-o", "yaml", "--id", container)).toContain("workingSetBytes:");
    expect(lines(await crictl("stats", "-o", "table", "--label", "tier=x"))).toHaveLength(1);
    expect(await json("statsp")).toMatchObject({
      stats: [{ attributes: { id }, linux: { network: { defaultInterface: { name: "eth0" } } } }],
    });
    expect(await crictl("statsp", "--id", id)).toMatch(/web +\w{13} +[\d.]+ +[\d.]+[kM]B/);
    expect(await crictl("statsp", "-o", "yaml", "--label", "app=web")).toContain("usageCoreNanoSeconds:");
    const { descriptors } = (await json("metricdescs")) as { descriptors: { name: string }[] };
    expect(descriptors.map(({ name }) => name)).toContain("container_memory_working_set_bytes");
    expect(await crictl("metricdescs", "-o", "yaml")).toContain("container_cpu_usage_seconds_total");
    expect(await json("metricsp")).toMatchObject({
      podMetrics: [{ podSandboxId: id, containerMetrics: [{ containerId: container }] }],
    });
    expect(await crictl("metricsp", "-o", "yaml")).toContain("container_memory_working_set_bytes");
  });

  test("update changes the limits of a running container", async () => {
    await crictl("update", "--memory", String(96 << 20), "--cpu-share", "512", container);
    expect(await json("inspect", container)).toMatchObject({
      status: { resources: { linux: { memoryLimitInBytes: String(96 << 20), cpuShares: "512" } } },
    });
  });

  test("checkpoint works, or says why not", async () => {
    const archive = join(scratch, "checkpoint.tar");
    const { code, stderr } = await daemon.tryCrictl("checkpoint", "--export", archive, container);
    if (code === 0) expect((await readFile(archive)).length).toBeGreaterThan(0);
    else expect(stderr).toMatch(/code = (Unimplemented|FailedPrecondition) desc = Cannot checkpoint/);
  });
});

describe("streams", () => {
  test("logs: all, the last, since, of one stream, with times, limited, and after reopening", async () => {
    const out = async (...args: string[]) => lines(await crictl("logs", ...args, container));
    expect(await out()).toEqual(["out1", "out2"]);
    expect(await out("--limit-bytes", "3")).toEqual(["out"]);
    expect((await daemon.tryCrictl("logs", "-s", "stderr", container)).stderr).toContain("err1\n");
    expect((await out("-t"))[0]).toMatch(/^\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-][\d:]+) out1$/);
    expect(await out("--since", "1h")).toHaveLength(2);
    expect(await out("--since", "2999-01-01T00:00:00Z")).toEqual([]);
    const tail = await daemon.tryCrictl("logs", "--tail", "2", container);
    // Where the machine has no /etc/crictl.yaml, crictl says so on stderr.
    const said = lines(tail.stdout + tail.stderr).filter((line) => !line.startsWith("time="));
    expect(said).toEqual(["out2", "err1"]);
    await rm(join(scratch, "main.log"));
    await crictl("logs", "--reopen", container);
    expect(await readFile(join(scratch, "main.log"), "utf8")).toBe("");
  });

  test.each(["spdy", "websocket"])("exec over %s: output, exit code, input, terminal", async (transport) => {
    const exec = (...args: string[]) => ["exec", "--transport", transport, ...args];
    expect(await crictl(...exec(container, "echo", "hello"))).toBe("hello\n");
    const failed = await daemon.tryCrictl(...exec(container, "sh", "-c", "echo no >&2; exit 3"));
    expect(failed.stderr).toMatch(/no\n[\s\S]*command terminated with exit code 3/);
    await using input = new Running(exec("-i", container, "rev"));
    input.child.stdin.end("bulkhead\n");
    await input.shows(/daehklub\n/);
    expect(await input.ends()).toBe(0);
    await using terminal = new Running(
      exec("-it", container, "sh", "-c", "test -t 0 && echo a$((1+1))b"),
      true,
    );
    await terminal.shows(/a2b\r\n/);
  });

  test("exec -s waits for the answer, and is stopped by its timeout; filters choose containers", async () => {
    expect(await crictl("exec", "-s", container, "echo", "sync")).toContain("sync");
    const failed = await daemon.tryCrictl("exec", "-s", container, "sh", "-c", "exit 4");
    expect(failed.stderr).toContain("exited with 4");
    const late = await daemon.tryCrictl("exec", "-s", "--timeout", "1", container, "sleep", "9");
    expect(late.stderr).toContain("DeadlineExceeded");
    expect(await crictl("exec", "-q", "--name", "^main$", "echo", "chosen")).toContain("chosen");
  });

  test.each(["spdy", "websocket"])("port-forward over %s reaches the pod", async (transport) => {
    await using forward = new Running(["port-forward", "--transport", transport, id, ":8080"]);
    const [, port] = await forward.shows(/Forwarding from 127\.0\.0\.1:(\d+) -> 8080/);
    const socket = connect(Number(port), "127.0.0.1").setEncoding("utf8");
    let answer = "";
    for await (const chunk of socket) {
      answer += chunk;
      if (answer.includes("\n")) break;
    }
    expect(answer).toBe("pong\n");
  });

  test.each(["spdy", "websocket"])(
    "attach over %s gives input to a container and shows its output",
    async (transport) => {
      const config = await containerConfig(`reads-${transport}`, "while read l; do echo got $l; done", {
        stdin: true,
      });
      const reader = (await crictl("create", id, config, pod)).trim();
      await crictl("start", reader);
      await using attached = new Running(["attach", "-i", "--transport", transport, reader]);
      // What is typed before it is attached waits in the pipe.
      attached.child.stdin.write("one\n");
      await attached.shows(/got one\n/);
      await using follow = new Running(["logs", "-f", reader]);
      attached.child.stdin.write("two\n");
      await follow.shows(/got one\ngot two\n/);
      await crictl("rm", "-f", reader);
    },
  );
});

test("run, events, stop, rm, stopp and rmp: the whole life, told as it happens", async () => {
  await using events = new Running(["events"]);
  const config = await podConfig("short");
  const script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done";
  const of = await containerConfig("short-container", script);
  const ran = (await crictl("run", "--runtime", "runc", "--no-pull", of, config)).trim();
  await expect.poll(() => crictl("logs", ran)).toBe("ready\n");
  expect((await crictl("stop", "--timeout", "10", ran)).trim()).toBe(ran);
  expect(await json("inspect", ran)).toMatchObject({ status: { state: "CONTAINER_EXITED", exitCode: 9 } });
  expect((await daemon.tryCrictl("rm", container)).stderr).toMatch(/running/);
  expect(await crictl("rm", ran)).toContain(ran);
  const [sandbox = ""] = lines(await crictl("pods", "-q", "--no-trunc", "--name", "^short$"));
  expect((await daemon.tryCrictl("rmp", sandbox)).code).not.toBe(0);
  expect(await crictl("stopp", sandbox)).toContain(`Stopped sandbox ${sandbox}`);
  expect(await crictl("rmp", sandbox)).toContain(`Removed sandbox ${sandbox}`);
  for (const type of ["CREATED", "STARTED", "STOPPED", "DELETED"])
    await events.shows(new RegExp(`"containerEventType": +"CONTAINER_${type}_EVENT"`));
  expect(events.text).toContain(ran);
});

test("rmi keeps what is used with --prune; --all of everything leaves nothing", async () => {
  await crictl("rmi", "--prune");
  expect(lines(await crictl("images", "-q"))).toEqual([imageId]);
  await crictl("stop", "--all", "--timeout", "0");
  expect(lines(await crictl("ps", "-q"))).toEqual([]);
  await crictl("rm", "--all", "--force");
  await crictl("rmp", "--all", "--force");
  expect(lines(await crictl("pods", "-q"))).toEqual([]);
  expect(await crictl("rmi", "--all")).toContain(`Deleted: ${busybox}`);
  expect(lines(await crictl("images", "-q"))).toEqual([]);
  expect(await remains(daemon)).toEqual([]);
});
