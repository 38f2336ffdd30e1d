import { copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bulkheadCluster, profileReady } from "../cluster/bulkhead.ts";
import { type Cluster, type Node, until } from "../cluster/cluster.ts";
import { first, inNamespace, type Namespace, podOf } from "../pods/kube.ts";
import { tool } from "../tools/cache.ts";
import { built } from "../tools/cargo.ts";
import { run } from "../tools/run.ts";
import { wat } from "../tools/wat.ts";
import { nodeRuntime } from "./agent.ts";

/**
 * Shims that nothing in Bulkhead was written for, each from crates.io, as artifacts that a registry has and a profile
 * names. The tests stand on each other in this order.
 */

const shims = {
  wasm: {
    programs: ["containerd-shim-wasmi-v1"],
    handler: { runtimeType: "io.containerd.wasmi.v1" },
  },
  rust: {
    programs: ["containerd-shim-runc-v2-rs", "runc"],
    handler: {
      runtimeType: "io.containerd.runc.v2-rs",
      options: { typeUrl: "containerd.runc.v1.Options" },
    },
  },
} as const;
type Name = keyof typeof shims;
const names = Object.keys(shims) as Name[];

const there = names.filter((name) => built(shims[name].programs[0])).length === names.length;

describe.runIf(there)("Shims from crates.io, as artifacts", () => {
  let cluster: Cluster;
  let node: Node;
  let ns: Namespace;
  let scratch: string;
  let image: string;
  let modules: string;

  /** An image of a directory, by digest, as `./dev artifact build` makes it. */
  const push = async (name: string, tree: string): Promise<string> => {
    const program = join(import.meta.dirname, "../../images/artifact.ts");
    const flags = ["--registry", cluster.registry, "--name", `artifacts/${name}`, "--insecure"];
    return (await run([process.execPath, program, tree, ...flags])).trim();
  };
  const directory = (name: string) => `/opt/bulkhead/artifacts/${digests.get(name)}`;
  const digests = new Map<string, string>();
  const pod = (name: string, profile: Name, container: Parameters<typeof podOf>[3]) =>
    podOf(name, profile, profile === "wasm" ? modules : image, container, { nodeName: node.name });
  const ended = (name: string) => ns.until(name, ({ status }) => /Succeeded|Failed/.test(status.phase), 90);

  beforeAll(async () => {
    scratch = await mkdtemp(join(tmpdir(), "bh-foreign-"));
    cluster = await bulkheadCluster();
    node = cluster.node("node-1");
    image = `${cluster.registry}/bulkhead/test:1`;
    ns = inNamespace(cluster, "foreign-shims");
    await ns.create();
    const files = join(scratch, "modules");
    await mkdir(files);
    for (const [name, text] of Object.entries(wat)) await writeFile(join(files, `${name}.wat`), text);
    modules = await push("modules", files);
    for (const name of names) {
      const bin = join(scratch, name, "bin");
      await mkdir(bin, { recursive: true });
      for (const program of shims[name].programs) await copyFile(tool(program), join(bin, program));
      const artifact = await push(name, join(scratch, name));
      digests.set(name, artifact.slice(-64));
      const spec = {
        handler: { shim: { wall: "namespaces", ...shims[name].handler } },
        artifact: { image: artifact },
        nodeSelector: { "kubernetes.io/hostname": node.name },
        runtimeClass: { overhead: { memory: "measured" } },
      };
      const profile = {
        apiVersion: "bulkhead.dev/v1alpha1",
        kind: "RuntimeProfile",
        metadata: { name },
        spec,
      };
      await cluster.kubectl(["apply", "-f", "-"], { input: JSON.stringify(profile) });
    }
  });
  afterAll(async () => {
    await ns?.destroy();
    await cluster?.kubectl(["delete", "rtp", ...names, "--ignore-not-found", "--timeout=90s"]);
    await rm(scratch, { recursive: true, force: true });
  });

  test.each(names)("%s is fetched, proven by its canary, and a RuntimeClass", async (name) => {
    await profileReady(cluster, name);
    const { status } = await nodeRuntime(cluster, node.name);
    const canary = status?.profiles?.find((each) => each.name === name)?.canary;
    expect(canary?.assertions).toEqual(
      expect.arrayContaining(["own-pid-namespace", "own-mnt-namespace", "own-net-namespace"]),
    );
    const handler = await node.exec(["cat", `/etc/bulkhead/handlers.d/${name}.yaml`]);
    expect(handler).toContain(`${directory(name)}/root/bin/${shims[name].programs[0]}`);
    const jsonpath = "jsonpath={.overhead.podFixed.memory}";
    expect(await cluster.kubectl(["get", "runtimeclass", name, "-o", jsonpath])).toMatch(/^(16|32|48|64)Mi$/);
  });

  test("a pod whose image is a module of WebAssembly runs it: log, exit code, and no exec", async () => {
    await ns.apply(pod("hello", "wasm", { command: ["/hello.wat"] }));
    expect(first(await ended("hello"))?.state.terminated).toMatchObject({ exitCode: 7, reason: "Error" });
    const log = await ns.kubectl(["logs", "hello"]);
    expect(log).toContain("hello from WebAssembly");
    expect(log).toContain("and on standard error");
    await ns.apply(
      pod("grows", "wasm", { command: ["/grows.wat"], resources: { limits: { memory: "64Mi" } } }),
    );
    expect(first(await ended("grows"))?.state.terminated).toMatchObject({
      exitCode: 137,
      reason: "OOMKilled",
    });
    await ns.run(pod("waits", "wasm", { command: ["/waits.wat"] }));
    await expect(ns.exec("waits", "true")).rejects.toThrow(/not supported/);
  });

  test("a pod of runc behind the shim in Rust: log, exec, exit code, limits", async () => {
    const command = ["sh", "-c", "echo here I am; exec sleep 3600"];
    const resources = { limits: { memory: "64Mi", cpu: "250m" } };
    await ns.run(pod("plain", "rust", { command, resources }));
    expect(await ns.kubectl(["logs", "plain"])).toBe("here I am\n");
    expect(await ns.kubectl(["exec", "-i", "plain", "--", "cat"], "typed")).toBe("typed");
    await expect(ns.exec("plain", "sh", "-c", "exit 7")).rejects.toThrow(/exit code 7/);
    const limits =
      "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    expect(Number(await ns.sh("plain", limits))).toBe(64 << 20);
    await ns.apply(pod("fails", "rust", { command: ["sh", "-c", "exit 42"] }));
    expect(first(await ended("fails"))?.state.terminated).toMatchObject({ exitCode: 42, reason: "Error" });
    await ns.apply(pod("oom", "rust", { command: ["tail", "/dev/zero"], resources }));
    expect(first(await ended("oom"))?.state.terminated).toMatchObject({ exitCode: 137, reason: "OOMKilled" });
  });

  test("pods of both run on through a kill -9 of the daemon, and end when they are deleted", async () => {
    await node.exec([
      "systemctl",
      "kill",
      "--kill-whom=main",
      "--signal=SIGKILL",
      "bulkhead-runtime.service",
    ]);
    await until(AbortSignal.timeout(60_000), 60_000, "exec again", async () => {
      expect(await ns.exec("plain", "echo", "again")).toBe("again\n");
      return true;
    });
    for (const name of ["waits", "plain"]) {
      const { status } = await ns.get(name);
      expect(status.phase).toBe("Running");
      expect(status.containerStatuses?.[0]).toMatchObject({ restartCount: 0 });
    }
    await ns.kubectl(["delete", "pod", "--all", "--grace-period=1"]);
  });

  test("nothing is left on the node when the profiles go", async () => {
    await cluster.kubectl(["delete", "rtp", ...names, "--timeout=90s"]);
    const left = names
      .map((name) => `ls -d ${directory(name)} /etc/bulkhead/handlers.d/${name}.yaml 2>/dev/null`)
      .concat("ls -d /run/bulkhead-canary/* 2>/dev/null", "pgrep -a -f '^/opt/.*(wasmi-v1|v2-rs)'");
    await until(AbortSignal.timeout(60_000), 60_000, "the shims to go", async () => {
      const { stdout } = await node.try(["sh", "-c", left.join("; ")]);
      if (stdout === "") return true;
      throw new Error(stdout);
    });
  });
});
