import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { findEngine, programAt } from "../../node-agent/src/engine/detect.ts";
import { realIn, resolveIn } from "../../node-agent/src/installer/host.ts";

/**
 * Where what answers on the kubelet's socket and what listens there differ, nothing may be configured. The engines are
 * fakes that say what they are told to, under whatever name of a program.
 */

let directory: string;
let socket: string;
let child: ChildProcess | undefined;
const refuse = () => Promise.reject(new Error("nothing runs here"));
const host = {
  at: (path: string) => resolveIn("/", path),
  real: (path: string) => realIn("/", path),
  run: refuse,
  fetch: refuse,
  serveLayout: refuse,
};

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "bh-detect-"));
  socket = join(directory, "cri.sock");
});
afterEach(async () => {
  if (child !== undefined && child.exitCode === null) {
    child.kill("SIGKILL");
    await once(child, "exit");
  }
  child = undefined;
  rmSync(directory, { recursive: true, force: true });
});

/** A process named `program` that serves the socket and calls itself `says`. */
const engine = async (program: string, says: string, ...flags: string[]): Promise<ChildProcess> => {
  const argv = [join(import.meta.dirname, "fake-engine.ts"), socket, says, ...flags];
  const started = spawn(process.execPath, argv, { argv0: program, stdio: ["ignore", "pipe", "inherit"] });
  child = started;
  await once(started.stdout, "data", { signal: AbortSignal.timeout(20_000) });
  return started;
};
const found = () => findEngine(host, socket, undefined, AbortSignal.timeout(20_000));
const inService = /\.service/.test(readFileSync("/proc/self/cgroup", "utf8"));

describe("an engine is refused", () => {
  test("that is none of the three, by the name that it gives itself", async () => {
    await engine("frakti", "frakti");
    await expect(found()).rejects.toThrow(`engine behind ${socket}: it calls itself "frakti"; expected`);
  });

  test.each([
    ["containerd", "dockershim"],
    ["containerd", "crio"],
    ["cri-o", "containerd"],
    ["docker", "dockerd"],
  ])("that says it is %s and is the program %s", async (says, program) => {
    const { pid } = await engine(`/usr/bin/${program}`, says);
    await expect(found()).rejects.toThrow(
      `it says that it is ${says}, but process ${pid}, which listens on it, is "${program}"`,
    );
  });

  test("whose Docker is not there", async () => {
    const endpoint = join(directory, "docker.sock");
    await engine("cri-dockerd", "docker", `--docker-endpoint=unix://${endpoint}`);
    await expect(found()).rejects.toThrow(`nobody listens on unix://${endpoint}`);
  });

  test("whose Docker is not there, where it has renamed its socket as cri-dockerd does", async () => {
    const wanted = socket;
    socket = join(directory, "123");
    const endpoints = ["/docker.sock", "/cri.sock"].map((name) => `unix://${directory}${name}`);
    const flags = [`--docker-endpoint=${endpoints[0]}`, `--container-runtime-endpoint=${endpoints[1]}`];
    await engine("cri-dockerd", "docker", ...flags);
    renameSync(socket, wanted);
    socket = wanted;
    await expect(found()).rejects.toThrow(`nobody listens on ${endpoints[0]}`);
  });

  test.skipIf(inService)("that no systemd service runs", async () => {
    const { pid } = await engine("/usr/bin/containerd", "containerd");
    await expect(found()).rejects.toThrow(`process ${pid} belongs to no systemd service`);
  });

  test("that does not answer, with the socket's name", async () => {
    const { pid } = await engine("/usr/bin/containerd", "containerd");
    process.kill(pid ?? 0, "SIGSTOP");
    const asked = findEngine(host, socket, undefined, AbortSignal.timeout(1000));
    await expect(asked).rejects.toThrow(`${socket}: Version was not answered in time`);
    process.kill(pid ?? 0, "SIGCONT");
  });
});

test("a program of many names is run by the one that the daemon was started by", () => {
  const bin = "/var/lib/rancher/k3s/data/0/bin";
  const there = (path: string): boolean => path === `${bin}/containerd`;
  expect(programAt(`${bin}/k3s`, ["containerd", "-c", "/f"], there)).toBe(`${bin}/containerd`);
  expect(programAt("/usr/bin/containerd", ["/usr/bin/containerd"], there)).toBe("/usr/bin/containerd");
  expect(programAt("/usr/lib/engine/containerd-2", ["containerd"], there)).toBe(
    "/usr/lib/engine/containerd-2",
  );
});
