import * as z from "zod";

/**
 * `handler.shim` of a RuntimeProfile: any containerd shim (runtime v2), known by its runtime type alone. Nothing of
 * Bulkhead's has to be written for it.
 */

const seconds = z.int().min(1).max(3600);

export const shimHandler = z.object({
  /** The shim's runtime type, io.containerd.NAME.VERSION, which names the binary containerd-shim-NAME-VERSION. */
  runtimeType: z
    .string()
    .max(128)
    .regex(
      /^[a-z0-9]+(\.[a-z0-9-]+)*\.v[0-9][a-z0-9-]*$/,
      "must be a runtime type such as io.containerd.wasmtime.v1, not a path",
    ),
  /** What the canary must find behind it: namespaces of its own, another kernel, or the kernel of a virtual machine. */
  wall: z.enum(["namespaces", "kernel", "vm"]).default("kernel"),
  /** The pod is made by the shim's sandbox API; else by a container that does nothing and holds it. */
  sandboxApi: z.boolean().default(false),
  /** The shim's own configuration: a file on the node that the shim is named, its text beside it. */
  options: z
    .object({
      /** Type URL of the options; containerd.runc.v1.Options for io.containerd.runc.v2 when left out. */
      typeUrl: z
        .string()
        .max(128)
        .regex(/^[A-Za-z0-9][A-Za-z0-9._/-]*$/, "must be a type URL such as io.containerd.runsc.v1.options")
        .optional(),
      format: z.enum(["toml", "json"]).default("toml"),
      config: z.string().max(16384).optional(),
    })
    .optional(),
  /** Annotations of a pod that reach the shim, as globs. */
  allowedAnnotations: z
    .array(
      z
        .string()
        .max(253)
        .regex(/^[A-Za-z0-9][A-Za-z0-9._/*-]*$/, "must be an annotation's name, with * for any part"),
    )
    .max(32)
    .optional(),
  /** Seconds. */
  deadlines: z
    .object({
      /** From the launch of the shim until the pod runs, and for each container to be made. */
      create: seconds.default(120),
      start: seconds.default(120),
      stop: seconds.default(30),
    })
    .default({ create: 120, start: 120, stop: 30 }),
});
export type ShimSettings = z.infer<typeof shimHandler>;

/** The binary of a runtime type, as containerd names it: its last two parts. */
export const shimBinary = (runtimeType: string): string => {
  const [name, version] = runtimeType.split(".").slice(-2);
  return `containerd-shim-${name}-${version}`;
};
