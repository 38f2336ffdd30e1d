import { readlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { critestOn, daemonForCritest, differences, leftOut } from "./critest.ts";
import { remains } from "./daemon.ts";
import { shimHandler } from "./handlers.ts";

test("critest through containerd's own shim for runc, four specs at a time: what does not pass is what SPECIFICATION.md lists", {
  timeout: 300_000,
}, async () => {
  await using stack = new AsyncDisposableStack();
  const daemon = await daemonForCritest(stack, 91);
  // Handlers are loaded as soon as their file is there.
  await writeFile(join(daemon.handlersDir, "shim.yaml"), JSON.stringify(shimHandler()));
  const specs = await critestOn(daemon, ["-runtime-handler=shim", "-parallel=4", ...leftOut]);
  expect(await differences(specs, "shim")).toEqual([]);
  expect(await remains(daemon)).toEqual([]);
});

test("the containers of a pod behind a shim share the pod's PID namespace, not the node's", {
  timeout: 120_000,
}, async () => {
  await using stack = new AsyncDisposableStack();
  const daemon = await daemonForCritest(stack, 91);
  await writeFile(join(daemon.handlersDir, "shim.yaml"), JSON.stringify(shimHandler()));
  const file = async (name: string, value: object): Promise<string> => {
    const path = join(daemon.handlersDir, "..", name);
    await writeFile(path, JSON.stringify(value));
    return path;
  };
  const image = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
  await daemon.crictl("pull", image);
  const pod = await file("pod.json", {
    metadata: { name: "pids", namespace: "default", uid: "pids" },
    linux: {},
  });
  const container = await file("container.json", {
    metadata: { name: "main" },
    image: { image },
    command: ["sleep", "1000"],
  });
  const podId = (await daemon.crictl("runp", "--runtime", "shim", pod)).trim();
  const id = (await daemon.crictl("create", podId, container, pod)).trim();
  await daemon.crictl("start", id);
  const seen = await daemon.crictl("exec", id, "sh", "-c", "readlink /proc/self/ns/pid; cat /proc/1/comm");
  expect(seen.trim().split("\n")).toEqual([
    expect.not.stringContaining(await readlink("/proc/self/ns/pid")),
    "holder",
  ]);
});
