import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { critestOn, daemonForCritest, differences, leftOut } from "./critest.ts";
import { type Daemon, remains } from "./daemon.ts";

const stack = new AsyncDisposableStack();
let daemon: Daemon;
beforeAll(async () => {
  daemon = await daemonForCritest(stack, 95);
}, 120_000);
afterAll(() => stack.disposeAsync(), 120_000);

test("critest under runc: what does not pass is what SPECIFICATION.md lists, and nothing stays behind", {
  timeout: 300_000,
}, async () => {
  expect(await differences(await critestOn(daemon, leftOut), "runc")).toEqual([]);
  expect(await remains(daemon)).toEqual([]);
});

test("critest with four specs at a time, streaming over WebSockets: the same", {
  timeout: 300_000,
}, async () => {
  const websockets = ["exec", "attach", "portforward"].map((each) => `-websocket-${each}`);
  const specs = await critestOn(daemon, ["-parallel=4", ...websockets, ...leftOut]);
  expect(await differences(specs, "runc")).toEqual([]);
  expect(await remains(daemon)).toEqual([]);
});

test("critest's benchmarks run, and write down what they measured", { timeout: 120_000 }, async () => {
  const dir = await mkdtemp(join(tmpdir(), "bh-critest-bench-"));
  try {
    const params = {
      ...{ containersNumber: 2, containersNumberParallel: 2, containerBenchmarkTimeoutSeconds: 60 },
      ...{ podsNumber: 2, podsNumberParallel: 2, podBenchmarkTimeoutSeconds: 60 },
      ...{ imagesNumber: 2, imagesNumberParallel: 2, imageBenchmarkTimeoutSeconds: 60 },
      podContainerStartBenchmarkTimeoutSeconds: 60,
      imagePullingBenchmarkImage: "registry.k8s.io/e2e-test-images/busybox:1.29-2",
    };
    // JSON is YAML.
    await writeFile(join(dir, "params.yaml"), JSON.stringify(params));
    const specs = await critestOn(daemon, [
      "-benchmark",
      `-benchmarking-params-file=${join(dir, "params.yaml")}`,
      `-benchmarking-output-dir=${dir}`,
    ]);
    const benchmarks = specs.filter(({ name }) => name.includes("benchmark"));
    expect(benchmarks.map(({ name, state, message }) => `${state} ${name} ${message}`)).toEqual(
      benchmarks.map(({ name }) => `passed ${name} `),
    );
    expect(benchmarks).toHaveLength(5);
    expect((await readdir(dir)).filter((name) => name.endsWith(".json")).length).toBeGreaterThanOrEqual(4);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
});
