import { firecrackerHandler, kataHandler, kataProblem, vmSettings } from "@bulkhead/lib/api/kata.ts";
import * as toml from "smol-toml";
import { describe, expect, test } from "vitest";
import { kataConfiguration, type NodeOfVm } from "./configuration.ts";
import { installationOf, neededFiles } from "./installation.ts";

const node: NodeOfVm = { arch: "amd64", vhostNet: true };
const settings = (kata: object) => vmSettings({ kata: kataHandler.parse(kata) })!;
const render = (vm: ReturnType<typeof settings>, on: NodeOfVm = node): string =>
  kataConfiguration(vm, installationOf("/opt/kata", vm, on.arch), { ...on, revision: "0123456789" });
// biome-ignore lint/suspicious/noExplicitAny: what a parser gives
const parsed = (vm: ReturnType<typeof settings>, on?: NodeOfVm): any => toml.parse(render(vm, on));

const golden: [name: string, kata: object, on?: NodeOfVm][] = [
  ["qemu-rust", {}],
  ["qemu-go", { shim: "go" }],
  ["qemu-rust-arm64", {}, { arch: "arm64", vhostNet: true }],
  ["cloud-hypervisor-rust", { hypervisor: "cloud-hypervisor" }],
  ["cloud-hypervisor-go", { hypervisor: "cloud-hypervisor", shim: "go" }],
  ["dragonball-rust", { hypervisor: "dragonball" }],
  ["firecracker-rust", { hypervisor: "firecracker" }],
  ["firecracker-go", { hypervisor: "firecracker", shim: "go" }],
  [
    "qemu-everything",
    {
      shim: "go",
      vcpus: 2,
      memory: "256Mi",
      initrd: "kata-containers-initrd.img",
      kernel: "vmlinuz.container",
      kernelParameters: ["mitigations=off", "nokaslr"],
      rootfs: "block",
      diskSize: "2Gi",
      hugepages: true,
      enableAnnotations: ["default_vcpus", "default_memory"],
      deadlines: { boot: 240, createContainer: 600 },
    },
    { arch: "amd64", vhostNet: false },
  ],
];

test.each(golden)("configuration.toml of %s", async (name, kata, on) => {
  await expect(render(settings(kata), on)).toMatchFileSnapshot(`testdata/${name}.toml`);
});

test("a firecracker profile is a Kata of Firecracker with its own defaults", () => {
  const vm = vmSettings({ firecracker: firecrackerHandler.parse({ vcpus: 2 }) })!;
  expect(vm).toEqual({ ...settings({ hypervisor: "firecracker", vcpus: 2 }), memoryMiB: 512 });
  expect(vm.rootfs).toBe("block");
});

describe("Kata's own rules for its configuration hold:", () => {
  test("the patterns of annotations match whole names", () => {
    const [pattern] = parsed(settings({ enableAnnotations: ["default_vcpus"] })).hypervisor.qemu
      .enable_annotations;
    expect(new RegExp(pattern).test("default_vcpus")).toBe(true);
    expect(new RegExp(pattern).test("x_default_vcpus_y")).toBe(false);
  });

  test("without a word of the profile's no annotation is taken", () => {
    expect(parsed(settings({})).hypervisor.qemu.enable_annotations).toEqual([]);
  });

  test("runtime-rs waits for the agent by reconnect_timeout_ms, the older runtime by dial_timeout in seconds", () => {
    const deadlines = { boot: 240, createContainer: 600 };
    expect(parsed(settings({ deadlines })).agent.kata).toMatchObject({
      dial_timeout_ms: 10,
      reconnect_timeout_ms: 240_000,
      create_container_timeout: 600,
    });
    const go = parsed(settings({ deadlines, shim: "go" }));
    expect(go.agent.kata).toMatchObject({ dial_timeout: 240 });
    expect(go.runtime).toMatchObject({ create_container_timeout: 600 });
  });

  test("a guest boots an image or an initrd, never both", () => {
    const { qemu } = parsed(settings({ initrd: "small.img" })).hypervisor;
    expect(qemu.initrd).toBe("/opt/kata/share/kata-containers/small.img");
    expect(qemu).not.toHaveProperty("image");
    expect(parsed(settings({})).hypervisor.qemu).not.toHaveProperty("initrd");
  });

  test("Dragonball names no hypervisor, no bridge and no firmware", () => {
    const { dragonball } = parsed(settings({ hypervisor: "dragonball" })).hypervisor;
    expect(dragonball).toMatchObject({ path: "", valid_hypervisor_paths: [], default_bridges: 0 });
    expect(dragonball).not.toHaveProperty("firmware");
  });

  test("no guest can start guests where its hypervisor can be told, and a runtime is told nothing that it does not know", () => {
    const key = "disable_nested_virtualization";
    const cloud = (more: object, on?: NodeOfVm) =>
      parsed(settings({ hypervisor: "cloud-hypervisor", ...more }), on).hypervisor.clh;
    expect(cloud({})).toMatchObject({ [key]: true });
    expect(cloud({ shim: "go" })).not.toHaveProperty(key);
    expect(cloud({}, { ...node, arch: "arm64" })).not.toHaveProperty(key);
    for (const shim of ["rust", "go"])
      expect(parsed(settings({ shim })).hypervisor.qemu.cpu_features).toBe("pmu=off,vmx=off,svm=off");
    expect(parsed(settings({}), { ...node, arch: "arm64" }).hypervisor.qemu.cpu_features).toBe("pmu=off");
  });

  test("a machine of huge pages is made of whole ones, and gets a pod's limit beside what it has without", () => {
    const huge = (kata: object) =>
      Object.values(parsed(settings({ hugepages: true, memory: "257Mi", ...kata })).hypervisor)[0];
    expect(huge({ shim: "go" })).toMatchObject({ enable_hugepages: true, default_memory: 258 });
    expect(huge({ hypervisor: "dragonball", hugepageSize: "1Gi" })).toMatchObject({
      ...{ enable_hugepages: true, default_memory: 1024, overhead_memory: 1024 },
    });
    expect(parsed(settings({ memory: "257Mi" })).hypervisor.qemu).toMatchObject({
      ...{ enable_hugepages: false, default_memory: 257, overhead_memory: 32 },
    });
  });

  test("the profile's kernel parameters come last, for the kernel takes the last", () => {
    const { kernel_params } = parsed(settings({ kernelParameters: ["mitigations=off"] })).hypervisor.qemu;
    expect(kernel_params).toMatch(/ bulkhead\.revision=0123456789 mitigations=off$/);
  });
});

describe("The files without which no guest starts", () => {
  const needed = (kata: object) => {
    const vm = settings(kata);
    return neededFiles(installationOf("/k", vm, "amd64"), vm);
  };
  test("are the shim's, the hypervisor's, the guest's, and virtiofsd where files are shared", () => {
    expect(needed({})).toEqual([
      "/k/runtime-rs/bin/containerd-shim-kata-v2",
      "/k/bin/qemu-system-x86_64",
      "/k/libexec/virtiofsd",
      "/k/share/kata-containers/vmlinux.container",
      "/k/share/kata-containers/kata-containers.img",
    ]);
    expect(needed({ rootfs: "block", shim: "go" })).toEqual([
      "/k/bin/containerd-shim-kata-v2",
      "/k/bin/qemu-system-x86_64",
      "/k/share/kata-containers/vmlinux.container",
      "/k/share/kata-containers/kata-containers.img",
    ]);
  });
  test("are no hypervisor of its own under Dragonball, and the jailer too under Firecracker", () => {
    expect(needed({ hypervisor: "dragonball" })).not.toContain("/k/libexec/virtiofsd");
    expect(needed({ hypervisor: "firecracker" })).toContain("/k/bin/jailer");
  });
});

describe("The installer refuses by itself what the API server would have", () => {
  test.each<[string, object, string]>([
    ["an image and an initrd", { image: "a", initrd: "b" }, "exclude each other"],
    [
      "Firecracker with virtio-fs",
      { hypervisor: "firecracker", rootfs: "virtio-fs" },
      "rootfs must be block",
    ],
    ["Firecracker with an initrd", { hypervisor: "firecracker", initrd: "b" }, "initrd must be left out"],
    ["Dragonball in the older runtime", { hypervisor: "dragonball", shim: "go" }, "shim must be rust"],
    ["a disk's size without disks", { diskSize: "1Gi" }, "diskSize is for rootfs: block"],
    ["templates", { templating: true, shim: "go", initrd: "b", rootfs: "block" }, "templating is not served"],
    ["huge pages by the Rust shim", { hugepages: true }, "hugepages needs"],
    ["a size of huge pages without them", { hugepageSize: "1Gi" }, "hugepageSize is for hugepages: true"],
    [
      "huge pages under Firecracker",
      { hugepages: true, shim: "go", hypervisor: "firecracker" },
      "hugepages needs",
    ],
  ])("%s", (_what, kata, message) => {
    expect(kataProblem(kataHandler.parse(kata))).toContain(message);
  });
  test("and takes what contradicts nothing", () => {
    expect(kataProblem(kataHandler.parse({ hypervisor: "firecracker", diskSize: "2Gi" }))).toBeUndefined();
    for (const huge of [
      { hypervisor: "dragonball" },
      { shim: "go" },
      { shim: "go", hypervisor: "cloud-hypervisor" },
    ])
      expect(kataProblem(kataHandler.parse({ ...huge, hugepages: true }))).toBeUndefined();
  });
});
