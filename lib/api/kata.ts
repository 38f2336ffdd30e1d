import * as z from "zod";

/**
 * Walls of virtual machines: `handler.kata` and `handler.firecracker` of a RuntimeProfile. Both are served by a shim of
 * Kata Containers 4 (its installation laid out as its static release, /opt/kata); Firecracker is a kind of its own,
 * since it has no shared file system and other defaults.
 */

/** A file of the installation's share/kata-containers, by its name alone. */
const guestFile = z
  .string()
  .max(128)
  .regex(
    /^[A-Za-z0-9][A-Za-z0-9_.-]*$/,
    "must be the name of a file in share/kata-containers, without a path",
  );

/** Whole MiB or GiB of a guest: 128Mi is what the smallest of the hypervisors starts with. */
const guestMemory = z
  .string()
  .max(8)
  .regex(
    /^((12[89]|1[3-9][0-9]|[2-9][0-9]{2}|[1-9][0-9]{3,5})Mi|[1-9][0-9]{0,2}Gi)$/,
    "must be at least 128Mi, in Mi or Gi",
  );

/** The writable disk of one container. */
const diskSize = z
  .string()
  .max(8)
  .regex(/^((6[4-9]|[7-9][0-9]|[1-9][0-9]{2,5})Mi|[1-9][0-9]{0,2}Gi)$/, "must be at least 64Mi, in Mi or Gi");

const seconds = z.int().min(1).max(3600);

/**
 * Kernel parameters that change how the guest runs and not what its wall is: none that names another init, root file
 * system or module, and none of the agent's, which could open a console or change where it listens.
 */
export const kernelParameterNames = [
  "audit",
  "cgroup_no_v1",
  "clocksource",
  "default_hugepagesz",
  "hugepages",
  "hugepagesz",
  "loglevel",
  "mitigations",
  "nokaslr",
  "nosmt",
  "numa_balancing",
  "panic",
  "psi",
  "quiet",
  "random.trust_cpu",
  "swiotlb",
  "systemd.unified_cgroup_hierarchy",
  "transparent_hugepage",
  "tsc",
] as const;

const kernelParameters = z
  .array(
    z
      .string()
      .max(128)
      .regex(
        new RegExp(`^(${kernelParameterNames.join("|").replaceAll(".", "[.]")})(=[A-Za-z0-9_.,:-]+)?$`),
        `must be NAME or NAME=VALUE with a NAME of ${kernelParameterNames.join(", ")}`,
      ),
  )
  .max(32);

/** Of `io.katacontainers.config.hypervisor.NAME`, what a pod may set: its own size and speed, never a path or a switch. */
export const annotationNames = [
  "default_vcpus",
  "default_max_vcpus",
  "default_memory",
  "rx_rate_limiter_max_rate",
  "tx_rate_limiter_max_rate",
] as const;

/** Sizes of huge pages that processors have, as Kubernetes names them: `hugepages-2Mi`. */
const hugepageSize = z.enum(["2Mi", "32Mi", "512Mi", "1Gi"]);
const defaultHugepageSize = "2Mi";

/** Seconds; a guest under emulation takes tens of them to boot. */
const deadlines = z
  .object({
    /** From the start of the virtual machine until its agent answers. */
    boot: seconds.default(60),
    /** For one container in the guest to be made. */
    createContainer: seconds.default(60),
    stop: seconds.default(60),
  })
  .default({ boot: 60, createContainer: 60, stop: 60 });

/** What both kinds have. */
const common = {
  /** Which of Kata's two runtimes: `rust` (runtime-rs, Kata's default since 4.0) or the older `go`. */
  shim: z.enum(["rust", "go"]).default("rust"),
  /** Of a pod without a CPU limit; one with a limit gets that, rounded up. */
  vcpus: z.int().min(1).max(32).default(1),
  /** Of a pod without a memory limit; one with a limit gets that and what the guest itself needs. */
  memory: guestMemory.default("2Gi"),
  image: guestFile.optional(),
  kernel: guestFile.optional(),
  kernelParameters: kernelParameters.optional(),
  /** Size of a container's root file system where it is a disk: a full one is ENOSPC for that container alone. */
  diskSize: diskSize.optional(),
  /** What of Kata's hypervisor settings a pod may set by annotation. */
  enableAnnotations: z.array(z.enum(annotationNames)).max(annotationNames.length).optional(),
  deadlines,
};

const kataFields = z.object({
  hypervisor: z.enum(["qemu", "cloud-hypervisor", "dragonball", "firecracker"]).default("qemu"),
  ...common,
  /** The guest's system as an initrd instead of a disk image. */
  initrd: guestFile.optional(),
  /** The guest's memory in the node's huge pages. */
  hugepages: z.boolean().default(false),
  /** Size of such a page, which is what the nodes' /dev/hugepages has. Left out: 2Mi. */
  hugepageSize: hugepageSize.optional(),
  /**
   * How a container's root file system comes into the guest: shared (`virtio-fs`), or as a disk of its own (`block`).
   * Left out: block under Firecracker, virtio-fs under the others.
   */
  rootfs: z.enum(["virtio-fs", "block"]).optional(),
  /** Guests start as copies of one that has booted. They share its pages: not between tenants. Refused: see the rules. */
  templating: z.boolean().default(false),
});
type Kata = z.infer<typeof kataFields>;

const under = (hypervisor: Kata["hypervisor"]) =>
  `(has(self.hypervisor) && self.hypervisor == '${hypervisor}')`;
const block = "(has(self.rootfs) && self.rootfs == 'block')";
const older = "(has(self.shim) && self.shim == 'go')";

/** What the fields must be to each other: for the API server, and for the installer, which believes nobody. */
const rules: { rule: string; holds: (kata: Kata) => boolean; message: string }[] = [
  {
    rule: "!has(self.image) || !has(self.initrd)",
    holds: ({ image, initrd }) => image === undefined || initrd === undefined,
    message: "image and initrd exclude each other",
  },
  {
    rule: `!${under("firecracker")} || !has(self.initrd)`,
    holds: ({ hypervisor, initrd }) => hypervisor !== "firecracker" || initrd === undefined,
    message: "initrd must be left out under firecracker: it boots an image",
  },
  {
    rule: `!${under("firecracker")} || !has(self.rootfs) || self.rootfs == 'block'`,
    holds: ({ hypervisor, rootfs }) => hypervisor !== "firecracker" || rootfs !== "virtio-fs",
    message: "rootfs must be block under firecracker: it has no virtio-fs",
  },
  {
    rule: `!${under("dragonball")} || !has(self.shim) || self.shim == 'rust'`,
    holds: ({ hypervisor, shim }) => hypervisor !== "dragonball" || shim === "rust",
    message: "shim must be rust under dragonball, which is a part of it",
  },
  {
    rule: `!has(self.diskSize) || ${block} || ${under("firecracker")}`,
    holds: ({ diskSize: size, rootfs, hypervisor }) =>
      size === undefined || rootfs === "block" || hypervisor === "firecracker",
    message: "diskSize is for rootfs: block",
  },
  {
    // As of 4.1 runtime-rs reads the setting for Dragonball alone, and Firecracker has none: memory of small pages.
    rule: `!has(self.hugepages) || !self.hugepages || ${under("dragonball")} || ${older} && !${under("firecracker")}`,
    holds: ({ hugepages, hypervisor, shim }) =>
      !hugepages || hypervisor === "dragonball" || (shim === "go" && hypervisor !== "firecracker"),
    message:
      "hugepages needs hypervisor dragonball, or shim go with qemu or cloud-hypervisor: Kata overlooks it elsewhere",
  },
  {
    rule: "!has(self.hugepageSize) || has(self.hugepages) && self.hugepages",
    holds: ({ hugepageSize: size, hugepages }) => size === undefined || hugepages,
    message: "hugepageSize is for hugepages: true",
  },
  {
    // As of 4.1 runtime-rs takes a copy's whole machine from the node's own configuration, not from the profile's; and
    // the older shim makes no container with a disk in a copy.
    rule: "!has(self.templating) || !self.templating",
    holds: ({ templating }) => !templating,
    message: "templating is not served: no pod of Kata 4.1 starts as a copy",
  },
];

export const kataHandler = kataFields.meta({
  "x-kubernetes-validations": rules.map(({ rule, message }) => ({ rule, message })),
});

export const firecrackerHandler = z.object({ ...common, memory: guestMemory.default("512Mi") });

type Firecracker = z.infer<typeof firecrackerHandler>;

/** The virtual machine of a profile, with every default filled in. Sizes in MiB, deadlines in seconds. */
export type VmSettings = Pick<Kata, "hypervisor" | "shim" | "vcpus" | "deadlines"> & {
  /** Of huge pages a whole number. */
  memoryMiB: number;
  /** Size of the pages that the guest's memory is made of; undefined: ordinary ones. */
  hugepageMiB: number | undefined;
  /** What the guest boots, of share/kata-containers; undefined stands for what the release ships. */
  image: string | undefined;
  initrd: string | undefined;
  kernel: string | undefined;
  kernelParameters: readonly string[];
  rootfs: "virtio-fs" | "block";
  diskMiB: number;
  enableAnnotations: readonly string[];
};

const mebibytes = (quantity: string): number =>
  Number.parseInt(quantity, 10) * (quantity.endsWith("Gi") ? 1024 : 1);

/** `amount` in whole pages of `page`; the same where pages are ordinary ones (undefined). */
const wholePages = (amount: number, page: number | undefined): number =>
  page === undefined ? amount : Math.ceil(amount / page) * page;

type VmHandler = { kata?: Kata | undefined; firecracker?: Firecracker | undefined };

/**
 * The huge pages that each machine of a profile takes whatever its pod asks for, as a RuntimeClass declares them:
 * `{ "hugepages-2Mi": "2048Mi" }`.
 */
export const fixedHugepages = (handler: VmHandler): Record<string, string> => {
  const vm = vmSettings(handler);
  return vm?.hugepageMiB === undefined
    ? {}
    : { [`hugepages-${handler.kata?.hugepageSize ?? defaultHugepageSize}`]: `${vm.memoryMiB}Mi` };
};

/** undefined for a handler that is no virtual machine. */
export function vmSettings(handler: VmHandler): VmSettings | undefined {
  const given: Kata | undefined =
    handler.kata ??
    (handler.firecracker && {
      ...handler.firecracker,
      hypervisor: "firecracker",
      hugepages: false,
      templating: false,
    });
  if (given === undefined) return undefined;
  const { hypervisor, shim, vcpus, deadlines: limits } = given;
  const hugepageMiB = given.hugepages ? mebibytes(given.hugepageSize ?? defaultHugepageSize) : undefined;
  return {
    hypervisor,
    shim,
    vcpus,
    deadlines: limits,
    memoryMiB: wholePages(mebibytes(given.memory), hugepageMiB),
    hugepageMiB,
    image: given.image,
    initrd: given.initrd,
    kernel: given.kernel,
    kernelParameters: given.kernelParameters ?? [],
    rootfs: given.rootfs ?? (hypervisor === "firecracker" ? "block" : "virtio-fs"),
    diskMiB: mebibytes(given.diskSize ?? "1Gi"),
    enableAnnotations: given.enableAnnotations ?? [],
  };
}

/** What the fields of `handler.kata` contradict each other in; undefined when they do not. */
export const kataProblem = (kata: Kata): string | undefined =>
  rules.find(({ holds }) => !holds(kata))?.message;
