import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { removeCgroups } from "../cluster/mounts.ts";
import { ensureTestImages } from "../images/build.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { inCache, tool } from "../tools/cache.ts";
import { built } from "../tools/cargo.ts";
import { criuHome } from "../tools/criu.ts";
import { crunWithCriu } from "../tools/crun.ts";
import { createDaemon, type Daemon, remains } from "./daemon.ts";

/** Debian's crun and youki as handlers: what their command lines do otherwise than runc's. */

/** Of the pods' PID namespace: shared, or each container's own. */
const PID = { shared: 0, own: 1 };
const noProgram = /no\/such\/program/;
const runtimes = [
  { name: "crun", binary: "/usr/bin/crun", pid: PID.shared, subnet: 86, refusal: noProgram, saves: false },
  { name: "crun-criu", binary: crunWithCriu, pid: PID.shared, subnet: 99, refusal: noProgram, saves: true },
  // On cgroup v1 it takes its number in the pod's PID namespace for one of the node's: only 1 is surely there.
  {
    ...{ name: "youki", binary: tool("youki"), pid: PID.own, subnet: 95 },
    ...{ refusal: /exec process failed/, saves: false },
  },
];

const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/**
 * crun 1.8.1 starts nothing where a controller is on the v2 side of hybrid cgroups, as on the test machine. The daemon
 * sees the v1 side alone: the other is taken out of its own mount namespace.
 */
const onlyV1 = 'if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"';

const there = runtimes.filter(({ name }) => name !== "youki" || built(name));

describe.each(there)("$name", ({ name, binary, pid, subnet, refusal, saves }) => {
  const cgroups = `bh-${name}-${process.pid}`;
  let scratch: string;
  let registry: RunningRegistry;
  let daemon: Daemon;
  let pod: string;
  let config: string;

  const file = async (name: string, content: object): Promise<string> => {
    const path = join(scratch, name);
    await writeFile(path, JSON.stringify(content));
    return path;
  };
  const create = async (name: string, command: string[], more: object = {}): Promise<string> => {
    const container = await file(`${name}.json`, {
      metadata: { name, attempt: 0 },
      image: { image: busybox },
      command,
      log_path: `${name}.log`,
      ...more,
    });
    return (await daemon.crictl("create", "--no-pull", pod, container, config)).trim();
  };
  const start = async (...args: Parameters<typeof create>): Promise<string> => {
    const id = await create(...args);
    await daemon.crictl("start", id);
    return id;
  };
  type Status = { status: { state: string; exitCode: number; reason: string } };
  const ended = async (id: string): Promise<Partial<Status["status"]>> => {
    let status: Partial<Status["status"]> = {};
    await expect
      .poll(
        async () => {
          ({ status } = JSON.parse(await daemon.crictl("inspect", id)) as Status);
          return status.state;
        },
        { timeout: 20_000 },
      )
      .toBe("CONTAINER_EXITED");
    return status;
  };

  beforeAll(async () => {
    scratch = await mkdtemp(join(tmpdir(), `bh-${name}-`));
    registry = await startRegistry({ dir: inCache("cri-registry") });
    await ensureTestImages(registry.host, ["e2e-test-images/busybox:1.29-2"]);
    const path = `PATH=${criuHome()}:${process.env.PATH}`;
    const under = ["env", path, "unshare", "--mount", "sh", "-c", onlyV1, "sh"];
    daemon = await createDaemon({ registry: registry.host, subnet, under });
    const handler = { kind: "oci", name, binary, restoreCheckpoints: true };
    await writeFile(join(daemon.handlersDir, `${name}.yaml`), JSON.stringify(handler));
    await daemon.start();
    await daemon.crictl("pull", busybox);
    config = await file("pod.json", {
      metadata: { name, namespace: "test", uid: name, attempt: 0 },
      log_directory: scratch,
      linux: { cgroup_parent: `/${cgroups}`, security_context: { namespace_options: { pid } } },
    });
    pod = (await daemon.crictl("runp", "--runtime", name, config)).trim();
  });
  afterAll(async () => {
    if (pod) await daemon.crictl("rmp", "-f", pod);
    expect(await remains(daemon)).toEqual([]);
    await daemon?.[Symbol.asyncDispose]();
    await registry?.stop();
    await removeCgroups(cgroups);
    await rm(scratch, { recursive: true, force: true });
  });

  test("what the handler offers is what the program says of itself: recursive read-only mounts from crun 1.9 on", async () => {
    type Info = { runtimeHandlers: { name: string; features?: object }[] };
    const { runtimeHandlers } = JSON.parse(await daemon.crictl("info")) as Info;
    const offers = (name: string) => runtimeHandlers.find((each) => each.name === name)?.features;
    expect(offers("runc")).toMatchObject({ recursive_read_only_mounts: true });
    if (saves)
      expect(offers(name)).toMatchObject({ recursive_read_only_mounts: true, user_namespaces: true });
    else expect(Object.values(offers(name) ?? {})).not.toContain(true);
  });

  test("output is logged, commands are executed, and a container has the PID namespace that was asked for", async () => {
    const id = await start("talks", ["sh", "-c", "echo out; echo err >&2; exec sleep 1000"]);
    await expect
      .poll(() => readFile(join(scratch, "talks.log"), "utf8").catch(() => ""))
      .toMatch(/out[\s\S]*err/);
    const beside = await start("beside", ["sleep", "1001"]);
    const seen = await daemon.crictl("exec", beside, "ps", "-o", "args");
    if (pid === PID.shared) expect(seen).toMatch(/sleep 1000[\s\S]*sleep 1001/);
    else expect(seen).not.toContain("sleep 1000");
    expect((await daemon.tryCrictl("exec", id, "sh", "-c", "exit 7")).stderr).toMatch(
      /exit(ed with)? code 7|status 7/,
    );
    const sync = await daemon.tryCrictl("exec", "-s", id, "cat", "/proc/1/comm");
    expect(sync.stdout).not.toBe("");
  });

  test("limits stand, are changed, and end who is over them", async () => {
    const limited = { linux: { resources: { memory_limit_in_bytes: 64 << 20 } } };
    const id = await start("limited", ["sleep", "1000"], limited);
    const limit = async () =>
      Number(await readFile(`/sys/fs/cgroup/memory/${cgroups}/${id}/memory.limit_in_bytes`, "utf8"));
    expect(await limit()).toBe(64 << 20);
    await daemon.crictl("update", "--memory", String(96 << 20), id);
    expect(await limit()).toBe(96 << 20);
    const oom = await start("oom", ["tail", "/dev/zero"], limited);
    expect(await ended(oom)).toMatchObject({ exitCode: 137, reason: "OOMKilled" });
  });

  test.each([
    ["Completed", 0, ["sh", "-c", "exit 0"]],
    ["Error", 42, ["sh", "-c", "exit 42"]],
  ])("a container ends as %s with %i", async (reason, exitCode, command) => {
    expect(await ended(await start(`ends-${exitCode}`, command))).toMatchObject({ exitCode, reason });
  });

  test("a command that is not there is told when the container is started", async () => {
    const id = await create("missing", ["/no/such/program"]);
    const { code, stderr } = await daemon.tryCrictl("start", id);
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/Cannot start the container: /);
    expect(stderr).toMatch(refusal);
  });

  const count = "i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.05; done";
  const countOf = async (id: string) => Number(await daemon.crictl("exec", "-s", id, "cat", "/count"));

  test.runIf(saves)(
    "a container is saved, goes on, and another is made of it, which goes on from there",
    async () => {
      const id = await start("counts", ["sh", "-c", count]);
      await expect.poll(() => countOf(id), { timeout: 20_000 }).toBeGreaterThan(20);
      const archive = join(scratch, "checkpoint.tar");
      await daemon.crictl("checkpoint", "--export", archive, id);
      const saved = await countOf(id);
      await expect.poll(() => countOf(id), { timeout: 20_000 }).toBeGreaterThan(saved);
      // Its processes have their old numbers, in a pod of a shared PID namespace.
      await daemon.crictl("rm", "-f", id);
      const again = await start("counts-on", ["sh", "-c", count], { image: { image: archive } });
      expect(await countOf(again)).toBeGreaterThan(15);
      const before = await countOf(again);
      await expect.poll(() => countOf(again), { timeout: 20_000 }).toBeGreaterThan(before);
      await daemon.crictl("stop", "--timeout", "0", again);
      expect(await ended(again)).toMatchObject({ exitCode: 137 });
    },
  );

  test.skipIf(saves)("containers are not saved, which is said before anything stands still", async () => {
    const id = await start("counts", ["sh", "-c", count]);
    await expect.poll(() => countOf(id), { timeout: 20_000 }).toBeGreaterThan(0);
    const archive = join(scratch, "checkpoint.tar");
    const { code, stderr } = await daemon.tryCrictl("checkpoint", "--export", archive, id);
    expect(code).not.toBe(0);
    expect(stderr).toContain("FailedPrecondition");
    expect(stderr).toContain(`${binary} has no command checkpoint: it was built without CRIU`);
    expect(existsSync(archive)).toBe(false);
    const before = await countOf(id);
    await expect.poll(() => countOf(id), { timeout: 20_000 }).toBeGreaterThan(before);
  });

  test("a container that ignores SIGTERM is killed", async () => {
    const id = await start("stubborn", ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]);
    await daemon.crictl("stop", "--timeout", "1", id);
    expect(await ended(id)).toMatchObject({ exitCode: 137 });
  });
});
