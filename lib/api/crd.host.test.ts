import { installCrds } from "@bulkhead/test/apiserver/crds.ts";
import { type ApiServer, startApiServer } from "@bulkhead/test/apiserver/start.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Client, createClient } from "../kube/client.ts";
import { kubeconfigFile } from "../kube/config.ts";
import {
  customResourceDefinitions as crdResource,
  nodeRuntimes,
  runtimeProfiles,
} from "../kube/resources.ts";
import { customResourceDefinitions } from "./crd.ts";
import { RuntimeProfileSpec } from "./runtime-profile.ts";

let server: ApiServer;
let client: Client;

beforeAll(async () => {
  server = await startApiServer();
  client = createClient({ config: await kubeconfigFile(server.kubeconfig) });
  await installCrds(client);
});
afterAll(async () => {
  await client?.close();
  await server?.[Symbol.asyncDispose]();
});

const create = (name: string, spec: unknown) =>
  client.create(runtimeProfiles, { metadata: { name }, spec } as never);

const digest = `registry.example/gvisor@sha256:${"a".repeat(64)}`;

const pem = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0=\n-----END PUBLIC KEY-----\n";

describe("The API server accepts", () => {
  const accepted: [string, unknown][] = [
    ["a profile of each namespaces wall", { handler: { runc: {} } }],
    ["crun with flags", { handler: { crun: { flags: ["--systemd-cgroup", "--log=/run/x.log"] } } }],
    ["gVisor as in the README", { handler: { gvisor: { platform: "systrap" } } }],
    [
      "gVisor with all that a profile can say",
      {
        handler: {
          gvisor: {
            ...{ overlay: "directory", overlayScope: "all", overlaySize: "1Gi", emptyDir: "sandbox" },
            nvproxy: { driverVersion: "580.126.20", capabilities: ["compute"] },
            tenant: { flags: ["debug", "host-uds"], volumeHints: true },
            flags: ["--net-raw", "--log-packets", "--host-uds=open"],
          },
        },
      },
    ],
    ["Kata on a named hypervisor", { handler: { kata: { hypervisor: "cloud-hypervisor" } } }],
    [
      "a virtual machine with all that one may ask for",
      {
        handler: {
          kata: {
            shim: "go",
            vcpus: 2,
            memory: "256Mi",
            initrd: "kata-containers-initrd.img",
            kernel: "vmlinuz.container",
            kernelParameters: ["mitigations=off", "nokaslr", "transparent_hugepage=never"],
            rootfs: "block",
            diskSize: "2Gi",
            hugepages: true,
            hugepageSize: "1Gi",
            templating: false,
            enableAnnotations: ["default_vcpus"],
            deadlines: { boot: 240 },
          },
        },
      },
    ],
    ["Kata by its older runtime", { handler: { kata: { shim: "go", rootfs: "virtio-fs" } } }],
    ["Dragonball", { handler: { kata: { hypervisor: "dragonball", hugepages: true } } }],
    ["Firecracker with its defaults", { handler: { firecracker: {} } }],
    [
      "Firecracker as a hypervisor of Kata",
      { handler: { kata: { hypervisor: "firecracker", diskSize: "1Gi" } } },
    ],
    ["a containerd shim", { handler: { shim: { runtimeType: "io.containerd.kata-qemu.v2" } } }],
    [
      "a containerd shim with its wall, options and deadlines",
      {
        handler: {
          shim: {
            runtimeType: "io.containerd.wasmtime.v1",
            wall: "namespaces",
            sandboxApi: true,
            options: { config: "fuel = 1", typeUrl: "example.v1.Options" },
            allowedAnnotations: ["example.com/*"],
            deadlines: { create: 600 },
          },
        },
      },
    ],
    ["an artifact by digest", { handler: { gvisor: {} }, artifact: { image: digest } }],
    [
      "an artifact with a signature policy that is put right",
      {
        handler: { gvisor: {} },
        artifact: { image: digest, repair: true, verify: { cosign: { publicKeys: [pem] } } },
      },
    ],
    ["maxUnavailable as a number", { handler: { runc: {} }, rollout: { maxUnavailable: 3 } }],
    ["maxUnavailable as a percentage", { handler: { runc: {} }, rollout: { maxUnavailable: "10%" } }],
    ["a toleration of everything", { handler: { runc: {} }, tolerations: [{ operator: "Exists" }] }],
    [
      "overhead and a class of another name",
      { handler: { runc: {} }, runtimeClass: { name: "walled", overhead: { memory: "120Mi", cpu: "250m" } } },
    ],
    ["overhead as measured", { handler: { runc: {} }, runtimeClass: { overhead: { memory: "measured" } } }],
  ];
  test.each(accepted.map(([title, spec], at) => [title, spec, `good-${at}`] as const))(
    "%s",
    async (_title, spec, name) => {
      const made = await create(name, spec);
      // What the server filled in is what the operator's own parser fills in.
      expect(made.spec).toEqual(RuntimeProfileSpec.parse(spec));
    },
  );
});

/** What a profile of a virtual machine may not say; the field, or the words of the rule. */
const vmRefusals = (
  [
    ["a hypervisor's image by path", "spec.handler.kata.image", { image: "../../etc/shadow" }],
    ["an image and an initrd", "image and initrd exclude each other", { image: "a.img", initrd: "b.img" }],
    ["a guest without memory to start in", "spec.handler.kata.memory", { memory: "64Mi" }],
    ["memory in bytes", "spec.handler.kata.memory", { memory: "268435456" }],
    ["half a processor", "spec.handler.kata.vcpus", { vcpus: 0.5 }],
    ["no processor", "spec.handler.kata.vcpus", { vcpus: 0 }],
    [
      "another init for the guest",
      "spec.handler.kata.kernelParameters",
      { kernelParameters: ["init=/bin/sh"] },
    ],
    [
      "a console in the guest's agent",
      "spec.handler.kata.kernelParameters",
      { kernelParameters: ["agent.debug_console"] },
    ],
    ["two parameters in one", "spec.handler.kata.kernelParameters", { kernelParameters: ["quiet init=/x"] }],
    [
      "an annotation that names a path",
      "spec.handler.kata.enableAnnotations",
      { enableAnnotations: ["path"] },
    ],
    ["a pattern of annotations", "spec.handler.kata.enableAnnotations", { enableAnnotations: [".*"] }],
    [
      "virtio-fs under Firecracker",
      "rootfs must be block",
      { hypervisor: "firecracker", rootfs: "virtio-fs" },
    ],
    ["an initrd under Firecracker", "initrd must be left out", { hypervisor: "firecracker", initrd: "a" }],
    ["Dragonball in the older runtime", "shim must be rust", { hypervisor: "dragonball", shim: "go" }],
    ["a disk's size without disks", "diskSize is for rootfs: block", { diskSize: "1Gi" }],
    [
      "templates, which Kata has no pods of",
      "templating is not served",
      { templating: true, shim: "go", initrd: "a", rootfs: "block" },
    ],
    ["huge pages by the Rust shim", "hugepages needs", { hugepages: true }],
    ["a size of huge pages without them", "hugepageSize is for hugepages: true", { hugepageSize: "1Gi" }],
    [
      "huge pages of a size that no processor has",
      "spec.handler.kata.hugepageSize",
      { hugepages: true, shim: "go", hugepageSize: "4Mi" },
    ],
    [
      "huge pages under Firecracker",
      "hugepages needs",
      { hugepages: true, shim: "go", hypervisor: "firecracker" },
    ],
    ["a deadline of no time", "spec.handler.kata.deadlines.boot", { deadlines: { boot: 0 } }],
  ] as const
).map(([title, field, kata]): [string, string, unknown] => [title, field, { handler: { kata } }]);

const gvisorFlags = (flag: string) => ({ handler: { gvisor: { flags: [flag] } } });

describe("The API server refuses, naming the field,", () => {
  const runc = { handler: { runc: {} } };
  const refused: [title: string, field: string, spec: unknown, name?: string][] = [
    ["a profile without spec", "spec", undefined],
    ["a flag of gVisor that unsays a field", "flags cannot set platform", gvisorFlags("--network=host")],
    ["a flag of gVisor that is Bulkhead's own", "flags cannot set platform", gvisorFlags("--root=/x")],
    [
      "a flag that no pod may set",
      "spec.handler.gvisor.tenant.flags",
      { handler: { gvisor: { tenant: { flags: ["network"] } } } },
    ],
    [
      "the size of an overlay that is none",
      "overlaySize need an overlay",
      { handler: { gvisor: { overlay: "none", overlaySize: "1Gi" } } },
    ],
    ["no handler", "spec.handler", {}],
    ["an empty handler", "spec.handler", { handler: {} }],
    ["two handlers", "spec.handler", { handler: { runc: {}, gvisor: {} } }],
    ["an unknown platform", "spec.handler.gvisor.platform", { handler: { gvisor: { platform: "magic" } } }],
    ["an unknown hypervisor", "spec.handler.kata.hypervisor", { handler: { kata: { hypervisor: "xen" } } }],
    ...vmRefusals,
    [
      "a flag that is a second argument",
      "spec.handler.runc.flags",
      { handler: { runc: { flags: ["run"] } } },
    ],
    [
      "a flag with a shell's meaning",
      "spec.handler.runc.flags",
      { handler: { runc: { flags: ["--a=$(id)"] } } },
    ],
    [
      "a signature policy without an image",
      "spec.artifact",
      { ...runc, artifact: { bundled: true, verify: { cosign: { publicKeys: [pem] } } } },
    ],
    [
      "a key that is none",
      "spec.artifact.verify.cosign.publicKeys",
      { ...runc, artifact: { image: digest, verify: { cosign: { publicKeys: ["/etc/key.pem"] } } } },
    ],
    [
      "a shim named by path",
      "spec.handler.shim.runtimeType",
      { handler: { shim: { runtimeType: "/bin/sh" } } },
    ],
    [
      "a shim's options in another format",
      "spec.handler.shim.options.format",
      { handler: { shim: { runtimeType: "io.containerd.x.v1", options: { format: "yaml", config: "" } } } },
    ],
    [
      "a deadline of nothing",
      "spec.handler.shim.deadlines.create",
      { handler: { shim: { runtimeType: "io.containerd.x.v1", deadlines: { create: 0 } } } },
    ],
    ["a shim without a type", "spec.handler.shim.runtimeType", { handler: { shim: {} } }],
    ["an artifact by tag", "spec.artifact.image", { ...runc, artifact: { image: "registry/gvisor:1" } }],
    ["no artifact at all", "spec.artifact", { ...runc, artifact: {} }],
    ["both artifacts", "spec.artifact", { ...runc, artifact: { bundled: true, image: digest } }],
    ["an unknown engine", "spec.engine", { ...runc, engine: "docker" }],
    [
      "a selector that is no label value",
      "spec.nodeSelector.disk",
      { ...runc, nodeSelector: { disk: "a b" } },
    ],
    ["maxUnavailable of zero", "spec.rollout.maxUnavailable", { ...runc, rollout: { maxUnavailable: 0 } }],
    [
      "maxUnavailable of 101%",
      "spec.rollout.maxUnavailable",
      { ...runc, rollout: { maxUnavailable: "101%" } },
    ],
    ["a soak of no time", "spec.rollout.minReadySeconds", { ...runc, rollout: { minReadySeconds: -1 } }],
    ["maxUnavailable of a list", "spec.rollout.maxUnavailable", { ...runc, rollout: { maxUnavailable: [] } }],
    ["a negative number of canaries", "spec.rollout.canaryNodes", { ...runc, rollout: { canaryNodes: -1 } }],
    ["no failure allowed", "spec.rollout.failureThreshold", { ...runc, rollout: { failureThreshold: 0 } }],
    ["an interval without unit", "spec.probe.interval", { ...runc, probe: { interval: "60" } }],
    ["an interval of nothing", "spec.probe.interval", { ...runc, probe: { interval: "0s" } }],
    [
      "memory that is no quantity",
      "spec.runtimeClass.overhead.memory",
      { ...runc, runtimeClass: { overhead: { memory: "lots" } } },
    ],
    [
      "processors as measured",
      "spec.runtimeClass.overhead.cpu",
      { ...runc, runtimeClass: { overhead: { cpu: "measured" } } },
    ],
    ["a class name with capitals", "spec.runtimeClass.name", { ...runc, runtimeClass: { name: "Walled" } }],
    [
      "a drain whose evicted pods would come back",
      "spec",
      { ...runc, rollout: { drain: {} }, runtimeClass: { readiness: "none" } },
    ],
    ["an unknown readiness", "spec.runtimeClass.readiness", { ...runc, runtimeClass: { readiness: "hope" } }],
    [
      "a toleration with Exists and a value",
      "spec.tolerations[0]",
      { ...runc, tolerations: [{ key: "a", operator: "Exists", value: "b" }] },
    ],
    ["a toleration of nothing", "spec.tolerations[0]", { ...runc, tolerations: [{ value: "b" }] }],
    ["a name with a dot", "metadata.name", runc, "sand.boxed"],
    ["a name of 64 characters", "metadata.name", runc, "a".repeat(64)],
  ];
  test.each(refused)("%s", async (_title, field, spec, name) => {
    const made = create(name ?? "bad", spec);
    await expect(made).rejects.toMatchObject({ code: "invalid-argument" });
    await expect(made).rejects.toThrow(field);
  });

  test("a RuntimeClass name that changes", async () => {
    await create("renamed", { handler: { runc: {} }, runtimeClass: { name: "one" } });
    const change = client.patch(runtimeProfiles, "renamed", { spec: { runtimeClass: { name: "two" } } });
    await expect(change).rejects.toThrow("spec.runtimeClass: Invalid value");
    await expect(change).rejects.toThrow("name cannot be changed");
    const removal = client.patch(runtimeProfiles, "renamed", { spec: { runtimeClass: { name: null } } });
    await expect(removal).rejects.toThrow("name cannot be changed");
  });

  test("a NodeRuntime with a revision that is no hash", async () => {
    const profile = { name: "p", revision: "latest", handler: { runc: {} } };
    await expect(
      client.create(nodeRuntimes, { metadata: { name: "n" }, spec: { profiles: [profile] } } as never),
    ).rejects.toThrow("spec.profiles[0].revision");
  });
});

test("A handler can be changed: it is a new revision", async () => {
  await create("changed", { handler: { gvisor: {} } });
  const changed = await client.patch(runtimeProfiles, "changed", {
    spec: { handler: { gvisor: null, runc: {} } },
  });
  expect(changed.spec.handler).toEqual({ runc: {} });
});

test("Status is written by its subresource alone, and the generation counts spec changes alone", async () => {
  const made = await create("status", { handler: { runc: {} } });
  const status = { observedGeneration: 1, pods: 3 };
  await client.patch(runtimeProfiles, "status", { status });
  expect((await client.get(runtimeProfiles, "status")).status).toBeUndefined();
  const written = await client.applyStatus(
    runtimeProfiles,
    { metadata: { name: "status" }, status },
    { fieldManager: "test" },
  );
  expect(written.status).toEqual(status);
  expect(written.metadata.generation).toBe(made.metadata.generation);
});

test("The definitions are established, structural, with short names, category and columns", async () => {
  for (const [name, short] of [
    ["runtimeprofiles.bulkhead.dev", "rtp"],
    ["noderuntimes.bulkhead.dev", "nrt"],
  ] as const) {
    const crd = (await client.get(crdResource, name)) as unknown as {
      spec: { names: { shortNames: string[]; categories: string[] }; versions: object[] };
      status: { conditions: { type: string; status: string }[] };
    };
    const condition = (type: string) => crd.status.conditions.find((c) => c.type === type)?.status;
    expect(condition("Established")).toBe("True");
    expect(condition("NonStructuralSchema") ?? "False").toBe("False");
    expect(crd.spec.names.shortNames).toEqual([short]);
    expect(crd.spec.names.categories).toEqual(["bulkhead"]);
    expect(crd.spec.versions[0]).toHaveProperty("additionalPrinterColumns");
  }
});

type Schema = { properties?: Record<string, Schema> };

test("NodeRuntimes live through an upgrade from a map of status.profiles to an atomic list, and the rollback", async () => {
  const definition = () => structuredClone(customResourceDefinitions["noderuntimes.yaml"]!) as never;
  const now = definition();
  const before = definition();
  const old = (before as { spec: { versions: { schema: { openAPIV3Schema: Schema } }[] } }).spec.versions[0]!;
  Object.assign(old.schema.openAPIV3Schema.properties!.status!.properties!.profiles!, {
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["name"],
  });
  const install = (is: never) => client.apply(crdResource, is, { fieldManager: "test", force: true });
  const name = "upgraded";
  const profile = (of: string, phase: string) => ({
    name: of,
    phase,
    revision: "",
    reason: "R",
    message: "",
  });
  const report = (...profiles: ReturnType<typeof profile>[]) =>
    client.applyStatus(
      nodeRuntimes,
      { metadata: { name }, status: { agentVersion: "1", profiles } },
      { fieldManager: "bulkhead-agent", force: true },
    );
  const owned = async () => JSON.stringify((await client.get(nodeRuntimes, name)).metadata).includes("k:{");
  await install(before);
  await client.apply(
    nodeRuntimes,
    { metadata: { name }, spec: { profiles: [] } },
    { fieldManager: "bulkhead-operator", force: true },
  );
  /** Reports until the API server serves the definition, which takes it a moment. */
  const reported = async (ownsEach: boolean, ...profiles: ReturnType<typeof profile>[]) => {
    const deadline = Date.now() + 20_000;
    do await report(...profiles);
    while ((await owned()) !== ownsEach && Date.now() < deadline);
    expect(await owned()).toBe(ownsEach);
    expect((await client.get(nodeRuntimes, name)).status?.profiles ?? []).toEqual(profiles);
  };
  await reported(true, profile("a", "Ready"), profile("b", "Ready"), profile("c", "Ready"));
  await install(now);
  await reported(false, profile("b", "Failed"), profile("c", "Ready"));
  await install(before);
  await reported(true, profile("b", "Ready"), profile("c", "Ready"));
  await reported(true, profile("c", "Removing"));
  await install(now);
  await reported(false);
});
