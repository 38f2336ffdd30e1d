import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type CriClient, connectCri } from "@bulkhead/lib/cri/client.ts";
import { NamespaceMode } from "@bulkhead/lib/gen/cri_pb.js";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createDaemon, type Daemon, remains } from "../cri/daemon.ts";
import { ensureTestImages } from "../images/build.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { inCache } from "../tools/cache.ts";
import { type FakeKata, writeFakeKata } from "./fake-kata.ts";

/** What a pod can say to Kata through the CRI, seen by a fake of Kata's shim. */

const image = { image: "registry.k8s.io/e2e-test-images/busybox:1.29-2" };
const signal = () => AbortSignal.timeout(60_000);
const run = `/tmp/bh-fk${process.pid}`;
const annotation = (name: string) => `io.katacontainers.config.${name}`;
let scratch: string;
let registry: RunningRegistry;
let daemon: Daemon;
let cri: CriClient;
let fake: FakeKata;

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "bh-kata-cri-"));
  fake = writeFakeKata(join(scratch, "fake"), run);
  registry = await startRegistry({ dir: inCache("cri-registry") });
  await ensureTestImages(registry.host, ["e2e-test-images/busybox:1.29-2"]);
  daemon = await createDaemon({ registry: registry.host, subnet: 98 });
  await writeFile(
    join(daemon.handlersDir, "vm.yaml"),
    JSON.stringify({
      ...{ kind: "shim", name: "vm", ...fake.config },
      kata: { runtime: "rust", rootfs: "block", diskMiB: 64 },
      // As the agent writes it for enableAnnotations: [default_vcpus].
      allowedAnnotations: [annotation("hypervisor.default_vcpus")],
    }),
  );
  await writeFile(
    join(daemon.handlersDir, "huge.yaml"),
    JSON.stringify({
      ...{ kind: "shim", name: "huge", ...fake.config },
      kata: { runtime: "go", rootfs: "virtio-fs", hugepages: { pageMiB: 2, machineMiB: 512 } },
    }),
  );
  await daemon.start();
  cri = connectCri(daemon.socket);
  await cri.image.pullImage({ image }, signal());
});
afterAll(async () => {
  cri?.[Symbol.dispose]();
  await daemon?.[Symbol.asyncDispose]();
  await registry?.stop();
  await rm(scratch, { recursive: true, force: true });
  await rm(run, { recursive: true, force: true });
});

const sandbox = (name: string, linux: object = {}) => ({
  metadata: { name, namespace: "shop", uid: `uid-${name}`, attempt: 0 },
  annotations: {
    [annotation("hypervisor.default_vcpus")]: "2",
    [annotation("hypervisor.path")]: "/bin/sh",
    // Kata takes these from any pod unless somebody stands between.
    [annotation("runtime.hypervisor_name")]: "remote",
    [annotation("runtime.disable_new_netns")]: "true",
    "io.kubernetes.cri.container-type": "container",
  },
  linux: { resources: { memoryLimitInBytes: 268435456n, cpuPeriod: 100_000n, cpuQuota: 50_000n }, ...linux },
});

test("a pod's size and the annotations that its profile lists reach Kata, and no others", async () => {
  const config = sandbox("sized", { securityContext: { privileged: true } });
  const { podSandboxId } = await cri.runtime.runPodSandbox({ config, runtimeHandler: "vm" }, signal());
  const { containerId } = await cri.runtime.createContainer(
    {
      podSandboxId,
      sandboxConfig: config,
      config: {
        metadata: { name: "main", attempt: 0 },
        image,
        command: ["sh"],
        annotations: { [annotation("agent.policy")]: "x" },
        linux: {
          resources: { memoryLimitInBytes: 67108864n, memorySwapLimitInBytes: 67108864n },
          securityContext: { privileged: true },
        },
      },
    },
    signal(),
  );
  const [pod, container] = fake.asked();
  expect(pod.annotations).toMatchObject({
    "io.kubernetes.cri.container-type": "sandbox",
    "io.kubernetes.cri.sandbox-memory": "268435456",
    "io.kubernetes.cri.sandbox-cpu-period": "100000",
    "io.kubernetes.cri.sandbox-cpu-quota": "50000",
  });
  const ofKata = Object.keys({ ...pod.annotations, ...container.annotations }).filter((key) =>
    key.startsWith("io.katacontainers."),
  );
  expect(ofKata).toEqual([annotation("hypervisor.default_vcpus")]);
  expect(container).toMatchObject({ create: containerId, type: "container", rootfs: "block file" });
  // A guest's kernel may keep no account of swap, whatever the node's does.
  expect(container.memory).toEqual({ limit: 67108864 });
  // Privileged, and yet no device of the node: Kata would plug its disks into the guest.
  expect(container.devices.filter(({ type }: { type: string }) => type === "b")).toEqual([]);
  await cri.runtime.removePodSandbox({ podSandboxId }, signal());
  expect(await remains(daemon)).toEqual([]);
});

test("a machine of huge pages is asked for in whole ones", async () => {
  const config = sandbox("huge", { resources: { memoryLimitInBytes: BigInt(257 << 20) } });
  const { podSandboxId } = await cri.runtime.runPodSandbox({ config, runtimeHandler: "huge" }, signal());
  expect(fake.asked().at(-1).annotations).toMatchObject({
    "io.kubernetes.cri.sandbox-memory": String(258 << 20),
  });
  await cri.runtime.removePodSandbox({ podSandboxId }, signal());
  expect(await remains(daemon)).toEqual([]);
});

test("a pod on the node's network is refused in words, and nothing is started", async () => {
  const config = sandbox("hosted", {
    securityContext: { namespaceOptions: { network: NamespaceMode.NODE } },
  });
  const before = fake.asked().length;
  await expect(cri.runtime.runPodSandbox({ config, runtimeHandler: "vm" }, signal())).rejects.toThrow(
    'Cannot run the pod on the node\'s network: handler "vm" is a virtual machine',
  );
  expect(fake.asked().length).toBe(before);
  expect(await remains(daemon)).toEqual([]);
});
