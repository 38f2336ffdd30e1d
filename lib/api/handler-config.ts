import * as z from "zod";

/**
 * A file of the runtime's handlers.d/: one CRI runtime handler. The node agent writes them, the runtime loads
 * them hot (a file that appears, changes or goes takes effect on the next RunPodSandbox; running pods keep the
 * handler that they were started with). File name: NAME.yaml.
 */

const absolutePath = z.string().regex(/^\/[^\0]*$/, "must be an absolute path");

/** Deadlines in seconds: a VM under emulation needs other ones than runc. */
const deadlines = z
  .object({
    create: z.int().min(1).default(120),
    start: z.int().min(1).default(120),
    stop: z.int().min(1).default(30),
  })
  .strict()
  .default({ create: 120, start: 120, stop: 30 });

const base = {
  /** The name that kubelet sends as runtime_handler. */
  name: z
    .string()
    .regex(/^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/, "must be a RuntimeClass handler name")
    .max(63),
  /** Set by the agent: the profile's revision, shown in Status and logs. */
  revision: z.string().optional(),
  /** Annotations that a pod may pass to the runtime, as globs. */
  allowedAnnotations: z.array(z.string()).default([]),
  deadlines,
};

/** An OCI runtime driven by its command line under conmon: runc, crun, youki. */
const OciHandler = z
  .object({
    ...base,
    kind: z.literal("oci"),
    binary: absolutePath,
    /** Global flags before the subcommand. */
    flags: z.array(z.string()).default([]),
    /**
     * Lets containers go on from checkpoints. CRIU makes processes as root, with whatever rights, files and filters the
     * checkpoint says that they had: who can have one restored has the node.
     */
    restoreCheckpoints: z.boolean().optional(),
  })
  .strict();

/** A containerd shim (runtime v2): gVisor, Kata, anything. */
const ShimHandler = z
  .object({
    ...base,
    kind: z.literal("shim"),
    /** Absolute path of containerd-shim-NAME-VERSION. */
    binary: absolutePath,
    /** Type URL of the options Any sent with Create; empty: no options. */
    optionsTypeUrl: z.string().default(""),
    /** The shim's configuration file, passed as ConfigPath. */
    configPath: absolutePath.optional(),
    /** Passes the file's text as ConfigBody too: some shims read no path. */
    configInline: z.boolean().optional(),
    /** The pod is made by the sandbox API (containerd.runtime.sandbox.v1), not by a container that holds it. */
    sandboxApi: z.boolean().optional(),
    /** One line: the wall that the canary expects. */
    wall: z.enum(["namespaces", "kernel", "vm"]).default("kernel"),
    /** Files and settings of gVisor's command line, where the shim is runsc's (port-forward, stats). */
    runsc: z
      .object({
        binary: absolutePath,
        root: absolutePath,
        /** As in the shim's configuration: only with "host" has a pod on the node's network a network. */
        network: z.enum(["sandbox", "host", "none"]).default("sandbox"),
        /** Where the content of an emptyDir is: on the node, or in the sandbox. */
        emptyDir: z.enum(["node", "sandbox"]).optional(),
        /** Whether the sandbox speaks to NVIDIA's driver: given its device nodes without that, gVisor's kernel ends. */
        nvproxy: z.boolean().optional(),
        /** Directory of overlay files, made when the handler is. */
        overlayDirectory: absolutePath.optional(),
      })
      .strict()
      .optional(),
    /** Where the shim is one of Kata Containers'. */
    kata: z
      .object({
        /** Which of its two runtimes. */
        runtime: z.enum(["rust", "go"]),
        /** How root file systems come into the guest: shared from a directory, or each as a disk of its own. */
        rootfs: z.enum(["virtio-fs", "block"]),
        /** Size of such a disk. */
        diskMiB: z.int().min(64).default(1024),
        /**
         * What it is told for the limit that a pod has not, of one that has the other. Left out: such a pod gets what it
         * would without limits.
         */
        withoutLimit: z
          .object({ vcpus: z.number().min(0), memoryMiB: z.int().min(0) })
          .strict()
          .optional(),
        /**
         * Size of the huge pages that the guest's memory is made of, and what it has of them without the pod's limits;
         * left out: it is of ordinary ones.
         */
        hugepages: z
          .object({ pageMiB: z.int().min(1), machineMiB: z.int().min(1) })
          .strict()
          .optional(),
        /** Whether the shim may be asked for metrics: some end themselves, and the pod with them, when they are. */
        metrics: z.boolean().default(false),
      })
      .strict()
      .optional(),
    /** Extra environment of the shim process. */
    env: z.record(z.string(), z.string()).default({}),
  })
  .strict();

/** Another CRI socket that serves the handler: fronting. */
const DelegateHandler = z.object({ ...base, kind: z.literal("delegate"), socket: absolutePath }).strict();

export const HandlerConfig = z.discriminatedUnion("kind", [OciHandler, ShimHandler, DelegateHandler]);
export type HandlerConfig = z.infer<typeof HandlerConfig>;
export type OciHandlerConfig = z.infer<typeof OciHandler>;
export type ShimHandlerConfig = z.infer<typeof ShimHandler>;
export type DelegateHandlerConfig = z.infer<typeof DelegateHandler>;
