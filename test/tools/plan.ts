import { type KubernetesVersion, kubeName, kubernetesVersions, usualKubernetes } from "./kubernetes.ts";

/**
 * What the project needs of a machine, as steps. Pure: which steps a command needs, and in which order they may run.
 */
export type Step = {
  id: string;
  /** Steps that must be done before. */
  after: readonly string[];
  /** A program that only its own tests need, which say that they skip without it: where it cannot be made, the rest is. */
  dispensable?: true;
} & (
  | { do: "apt"; packages: readonly string[] }
  | { do: "go"; module: string; builds: readonly GoBuild[] }
  | { do: "kubectl" }
  | { do: "criu" }
  | { do: "docker" }
  | { do: "cargo"; build: CrateBuild }
  | {
      do: "debian";
      programs: readonly ("etcd" | "docker-registry" | "prometheus" | "tinyproxy" | "containerd-1.6")[];
    }
  | { do: "rootfs" }
  | { do: "arm64" }
);

/** One program of a Go module that test/tools pins. */
export type GoBuild = {
  /** Its name in the cache's bin. */
  output: string;
  package: string;
  /** For this architecture instead of the machine's. */
  arch?: "arm64";
  /** `go test -c` instead of `go build`. */
  test?: boolean;
  cgo?: boolean;
  tags?: string;
  ldflags?: string;
  /** Instead of the module's go.mod, with the sums beside it. */
  modfile?: string;
  /** A program in C: `package` is the module, and gcc makes it of the sources in this folder of it. */
  c?: string;
};

/** One program in Rust: of a crate of crates.io, or of a folder of test/tools. */
export type CrateBuild = {
  /** Its name in the cache's bin, and cargo's. */
  output: string;
  /** Instead of the default ones. */
  features?: readonly string[];
  /** Of a program that runs often: compiled twice as long, and faster. */
  optimized?: true;
} & ({ crate: string; version: string } | { folder: string });

/** Debian packages and why each is needed. */
const packages = {
  "ca-certificates": "downloads",
  openssl: "certificates of the test cluster",
  unzip: "kubectl and helm come in an archive",
  iproute2: "bridges, cables, namespaces",
  iptables: "CNI plugins",
  mmdebstrap: "root filesystem of the nodes",
  "debian-archive-keyring": "mmdebstrap checks signatures with it",
  "util-linux": "nsenter, unshare, script",
  procps: "tests look at processes",
  gcc: "runc's cgo, pause and the other small C programs of the images",
  "libc6-dev": "the same",
  binutils: "readelf finds the libraries of an image's programs",
  "libseccomp-dev": "runc",
  "pkg-config": "runc",
  make: "busybox of the test images",
  bzip2: "busybox's build",
  "dpkg-dev": "unpacks busybox's source",
  patch: "the same",
  "xz-utils": "the same",
  patchelf: "node and conmon of the agent's bundle come with their own libraries",
  "busybox-static": "the agent's bundle and canary",
  "libcap2-bin": "setcap: layers with file capabilities",
  conmon: "the runtime's monitor of OCI containers",
  crun: "the agent's bundle: the other OCI runtime",
  "protobuf-compiler": "runwasi's build makes Rust of containerd's .proto files",
  skopeo: "a second opinion on images and registries",
  umoci: "a second opinion on what a layer unpacks to",
  "erofs-utils": "fsck.erofs judges the images that we write",
  apparmor: "its parser judges the profile that we write",
  chromium: "the operator's status page in a real browser",
  socat: "crictl port-forward of the engines we compare with",
} as const;

const component = "k8s.io/component-base/version";

/** The control plane and kubelet of a version. */
const kubeBuild = (version: KubernetesVersion): GoBuild => ({
  output: kubeName(version),
  package: ".",
  // helm and client programs refuse a version that is none.
  ldflags: [
    `-X ${component}.gitVersion=${kubernetesVersions[version]}`,
    `-X ${component}.gitMajor=1`,
    `-X ${component}.gitMinor=${version.slice(2)}`,
    `-X ${component}.gitTreeState=clean`,
    `-X ${component}.gitCommit=unknown`,
  ].join(" "),
  ...(version === usualKubernetes ? {} : { modfile: `go-${version}.mod` }),
});
const cni = "github.com/containernetworking/plugins/plugins";

/** For this machine, longest first: what runs first decides how long all takes. */
const native: readonly Step[] = [
  { id: "packages", do: "apt", after: [], packages: Object.keys(packages) },
  {
    id: "kubernetes",
    do: "go",
    after: [],
    module: "kubernetes",
    builds: [kubeBuild(usualKubernetes)],
  },
  {
    // After the control plane: most of what it compiles is the same.
    id: "e2e",
    do: "go",
    after: ["kubernetes"],
    module: "e2e",
    builds: [
      { output: "agnhost", package: "k8s.io/kubernetes/test/images/agnhost" },
      {
        output: "e2e.test",
        package: "k8s.io/kubernetes/test/e2e",
        test: true,
        ldflags: `-X ${component}.gitVersion=${kubernetesVersions[usualKubernetes]}`,
      },
      // Runs its specs side by side.
      { output: "ginkgo", package: "github.com/onsi/ginkgo/v2/ginkgo" },
    ],
  },
  // Large, and of the tests inside virtual machines alone.
  { id: "emulator", do: "apt", after: ["packages"], packages: ["qemu-system-x86", "kmod"] },
  { id: "kubectl", do: "kubectl", after: ["packages"] },
  { id: "criu", do: "criu", after: ["packages"] },
  {
    id: "programs",
    do: "debian",
    after: ["packages"],
    programs: ["etcd", "docker-registry", "tinyproxy", "containerd-1.6"],
  },
  { id: "rootfs", do: "rootfs", after: ["packages"] },
  {
    id: "containerd",
    do: "go",
    after: [],
    module: "containerd",
    builds: [
      ...["containerd", "ctr", "containerd-shim-runc-v2"].map((name) => ({
        output: name,
        package: `github.com/containerd/containerd/v2/cmd/${name}`,
        tags: "no_btrfs",
      })),
      // A shim of the tests' own, on the same library.
      { output: "containerd-shim-unshare-v1", package: "./unshare" },
    ],
  },
  {
    id: "gvisor",
    do: "go",
    after: [],
    module: "gvisor",
    builds: [
      { output: "runsc", package: "gvisor.dev/gvisor/runsc" },
      { output: "containerd-shim-runsc-v1", package: "gvisor.dev/gvisor/shim" },
    ],
  },
  {
    id: "crictl",
    do: "go",
    after: [],
    module: "cri-tools",
    builds: [
      {
        output: "crictl",
        package: "sigs.k8s.io/cri-tools/cmd/crictl",
        ldflags: "-X sigs.k8s.io/cri-tools/pkg/version.Version=1.34.0",
      },
    ],
  },
  {
    id: "critest",
    do: "go",
    after: [],
    module: "cri-tools",
    builds: [
      { output: "critest", package: "sigs.k8s.io/cri-tools/cmd/critest", test: true },
      // critest --parallel finds it by its name; the end-to-end suite has its own.
      { output: "critest-parallel/ginkgo", package: "github.com/onsi/ginkgo/v2/ginkgo" },
    ],
  },
  {
    id: "runc",
    do: "go",
    after: ["packages"],
    module: "runc",
    builds: [
      {
        output: "runc",
        package: "github.com/opencontainers/runc",
        cgo: true,
        tags: "seccomp",
        ldflags: "-extldflags -static",
      },
    ],
  },
  {
    // Of one test, and as large as the control plane: only what makes all makes it, and the test runs where it is.
    id: "cosign",
    do: "go",
    after: [],
    dispensable: true,
    module: "cosign",
    builds: [{ output: "cosign", package: "github.com/sigstore/cosign/v2/cmd/cosign" }],
  },
  {
    // Takes the spans of the tests of tracing: the Collector's own receiver.
    id: "otlp",
    do: "go",
    after: [],
    module: "otlp",
    builds: [{ output: "otlp-receiver", package: "." }],
  },
  // Each of one test, and minutes of work, like cosign.
  {
    id: "youki",
    do: "cargo",
    after: ["packages"],
    dispensable: true,
    build: {
      output: "youki",
      crate: "youki",
      version: "0.7.0",
      features: ["v1", "v2", "seccomp"],
      optimized: true,
    },
  },
  {
    // containerd's shim for runc a second time, in Rust.
    id: "rust-shim",
    do: "cargo",
    after: ["packages"],
    dispensable: true,
    build: { output: "containerd-shim-runc-v2-rs", crate: "containerd-runc-shim", version: "0.2.0" },
  },
  {
    id: "runwasi",
    do: "cargo",
    after: ["packages"],
    dispensable: true,
    build: { output: "containerd-shim-wasmi-v1", folder: "runwasi" },
  },
  {
    // Of one test, like cosign.
    id: "cri-o",
    do: "go",
    after: ["packages"],
    dispensable: true,
    module: "cri-o",
    builds: [
      {
        output: "crio",
        package: "github.com/cri-o/cri-o/cmd/crio",
        cgo: true,
        tags: [
          ...["seccomp", "netgo", "osusergo", "containers_image_openpgp", "containers_image_ostree_stub"],
          ...["exclude_graphdriver_btrfs", "btrfs_noversion"],
        ].join(","),
        ldflags: "-extldflags -static",
      },
      // Makes the namespaces of its pods.
      { output: "pinns", package: "github.com/cri-o/cri-o", c: "pinns/src" },
    ],
  },
  {
    // Of one test, too, with the Docker that it stands before.
    id: "cri-dockerd",
    do: "go",
    after: [],
    dispensable: true,
    module: "cri-dockerd",
    builds: [
      {
        output: "cri-dockerd",
        package: "github.com/Mirantis/cri-dockerd",
        ldflags: "-X github.com/Mirantis/cri-dockerd/cmd/version.Version=0.4.0",
      },
    ],
  },
  { id: "docker", do: "docker", after: ["packages"], dispensable: true },
  {
    id: "cni",
    do: "go",
    after: [],
    module: "cni",
    builds: [
      "main/bridge",
      "main/loopback",
      "main/ptp",
      "ipam/host-local",
      "meta/portmap",
      "meta/firewall",
    ].map((path) => ({ output: `cni/${path.slice(path.indexOf("/") + 1)}`, package: `${cni}/${path}` })),
  },
];

/** The same for arm64, as far as its images and the machine that `./dev vm-arm64` emulates need it. */
const arm64: readonly Step[] = [
  {
    id: "arm64-compiler",
    do: "apt",
    after: ["packages"],
    packages: ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
  },
  { id: "arm64-root", do: "arm64", after: ["packages"] },
  ...native.flatMap((step): Step[] => {
    if (step.do !== "go" || !["gvisor", "runc", "crictl", "cni"].includes(step.id)) return [];
    const builds = step.builds.map(
      (build): GoBuild => ({ ...build, output: `arm64/${build.output}`, arch: "arm64" }),
    );
    return [{ ...step, id: `arm64-${step.id}`, after: ["arm64-compiler", "arm64-root"], builds }];
  }),
];

/** Its machine's own. */
const arm64Emulator: Step = {
  id: "arm64-emulator",
  do: "apt",
  after: ["arm64-compiler"],
  packages: ["qemu-system-arm", "kmod"],
};

/** Every step there is. */
export const steps: readonly Step[] = [...native, ...arm64, arm64Emulator];

const cluster = [
  "packages",
  "kubernetes",
  "kubectl",
  "programs",
  "rootfs",
  "containerd",
  "crictl",
  "runc",
  "cni",
] as const;

/** The steps that each command needs. */
export const needs = {
  up: cluster,
  demo: [...cluster, "gvisor"],
  runtime: ["packages", "runc", "cni", "gvisor", "crictl"],
  /** The registry of the test images, and the programs that build them. */
  images: ["packages", "runc", "cni", "gvisor", "crictl", "programs"],
  critest: ["packages", "runc", "cni", "gvisor", "containerd", "crictl", "critest", "programs"],
  bench: [...cluster, "gvisor", "critest"],
  "e2e-upstream": [...cluster, "gvisor", "e2e"],
  /** Unit tests and checks run on Node.js alone. */
  unit: [],
  host: [...cluster, "gvisor", "critest", "otlp", "criu"],
  vm: [...cluster, "gvisor", "emulator", "criu"],
  /** Images for arm64. */
  arm64: ["packages", ...arm64.map(({ id }) => id)],
  "vm-arm64": ["packages", "programs", ...arm64.map(({ id }) => id), arm64Emulator.id],
  all: native.map(({ id }) => id),
} as const satisfies Record<string, readonly string[]>;

/** What is needed for, as {@link needs} names it. */
export type Need = keyof typeof needs;

/** The steps of a need, in the order in which to start them, with the programs of these versions of Kubernetes. */
export const stepsFor = (
  need: Need,
  kubernetes: readonly KubernetesVersion[] = [usualKubernetes],
): Step[] => {
  const wanted: readonly string[] = needs[need];
  return steps
    .filter(({ id }) => wanted.includes(id))
    .map((step) =>
      step.id === "kubernetes" && step.do === "go" ? { ...step, builds: kubernetes.map(kubeBuild) } : step,
    );
};

/** The steps that may start now: of those that wait, the ones that wait for nothing any more. */
export const startable = (waiting: readonly Step[], done: ReadonlySet<string>): Step[] =>
  waiting.filter(({ after }) => after.every((id) => done.has(id)));
