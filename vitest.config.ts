import { defineConfig } from "vitest/config";

// A test of real processes may meet a machine that is busy with others; CI tries it once more and says so.
const retry = process.env.CI ? 1 : 0;

// What is awaited comes at once or, on a busy machine, later: a far deadline costs nothing but when a test fails.
const poll = { timeout: 20_000 };

// unit: pure, no root. host: root on this machine, real kernel and runtimes. cluster: the real control plane and nodes.
export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: "unit",
          include: ["{lib,operator,node-agent,runtime,kubectl,test}/**/*.test.ts"],
          exclude: ["**/*.{host,cluster,vm,arm64}.test.ts", "**/node_modules/**"],
          testTimeout: 30_000,
          hookTimeout: 30_000,
          expect: { poll },
        },
      },
      {
        test: {
          name: "host",
          include: ["{lib,operator,node-agent,runtime,kubectl,test}/**/*.host.test.ts"],
          fileParallelism: false,
          retry,
          testTimeout: 60_000,
          expect: { poll },
          hookTimeout: 120_000,
        },
      },
      {
        test: {
          // Inside a virtual machine under emulation: another kernel than this machine's.
          name: "vm",
          include: ["test/vm/*.vm.test.ts"],
          fileParallelism: false,
          retry,
          testTimeout: 240_000,
          expect: { poll },
          hookTimeout: 900_000,
        },
      },
      {
        test: {
          // The same of another architecture, ten minutes in all: not of those that `./dev test` runs (./dev vm-arm64).
          name: "arm64",
          include: ["test/vm/*.arm64.test.ts"],
          fileParallelism: false,
          testTimeout: 900_000,
          hookTimeout: 1_800_000,
          expect: { poll },
        },
      },
      {
        test: {
          name: "cluster",
          include: ["test/**/*.cluster.test.ts"],
          exclude: ["test/lifecycle/**", "**/node_modules/**"],
          globalSetup: ["test/cluster/global-setup.ts"],
          fileParallelism: false,
          retry,
          testTimeout: 180_000,
          expect: { poll },
          hookTimeout: 600_000,
        },
      },
      {
        test: {
          // Bulkhead's whole life on a node: on a cluster of its own, because it comes, goes and is killed there.
          name: "lifecycle",
          include: ["test/lifecycle/*.cluster.test.ts"],
          globalSetup: ["test/lifecycle/global-setup.ts"],
          fileParallelism: false,
          testTimeout: 240_000,
          expect: { poll },
          hookTimeout: 600_000,
        },
      },
    ],
  },
});
