import { chmodSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";

/** The fake of Kata's shim (fake-kata-shim.ts) as a program, and a handler that runs it. */
export type FakeKata = {
  config: Pick<ShimHandlerConfig, "binary" | "configPath" | "optionsTypeUrl" | "wall" | "env">;
  /** What the fake was asked so far. */
  // biome-ignore lint/suspicious/noExplicitAny: what the fake wrote
  asked(): any[];
};

/** `run` is where it serves metrics: short, as a socket's path with a pod's whole id is made of it. */
export const writeFakeKata = (dir: string, run: string): FakeKata => {
  mkdirSync(dir);
  const binary = join(dir, "containerd-shim-kata-v2");
  // The shim is a program of its own: nothing of the test's environment reaches it but what the handler says.
  const script = join(import.meta.dirname, "fake-kata-shim.ts");
  writeFileSync(binary, `#!/bin/sh\nexec ${process.execPath} ${script} "$@"\n`);
  chmodSync(binary, 0o755);
  const configPath = join(dir, "configuration.toml");
  writeFileSync(configPath, "");
  const log = join(dir, "requests");
  writeFileSync(log, "");
  return {
    config: {
      binary,
      configPath,
      optionsTypeUrl: "io.containerd.kata.v2.options",
      wall: "vm",
      env: { FAKE_KATA_LOG: log, FAKE_KATA_RUN: run },
    },
    asked: () =>
      readFileSync(log, "utf8")
        .trim()
        .split("\n")
        .filter((line) => line !== "")
        .map((line) => JSON.parse(line)),
  };
};
