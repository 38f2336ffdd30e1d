import * as z from "zod";
import { endpointPattern } from "../tracing/settings.ts";
import { HandlerConfig } from "./handler-config.ts";
import { paths } from "./paths.ts";

const absolutePath = z.string().regex(/^\/[^\0]*$/, "must be an absolute path");
const hostPort = z
  .string()
  .regex(/^\S*:\d{1,5}$/, "must be HOST:PORT")
  .refine((text) => Number(text.slice(text.lastIndexOf(":") + 1)) <= 65_535, "must have a port up to 65535");
const url = z
  .string()
  .regex(
    /^(https?:\/\/[^\s/@?#]+(\/[^\s?#]*)?|oci:(\/\/)?\/\S+)$/,
    "must be an http or https URL without user, query and fragment, or oci:/DIRECTORY of an image layout",
  );

const host = /^[A-Za-z0-9.-]+(:\d{1,5})?$|^\[[A-Fa-f0-9:]+\](:\d{1,5})?$/;
const mirrors = z.record(z.string(), z.array(url)).superRefine((value, { addIssue }) => {
  for (const key of Object.keys(value))
    if (!host.test(key))
      addIssue({ code: "custom", path: [key], message: "must be HOST[:PORT], as images' names have it" });
});

const httpUrl = z.string().regex(endpointPattern, "must be an http or https URL");

const signatureRule = z
  .object({
    images: z.array(z.string().min(1).max(512)).min(1),
    keys: z.array(absolutePath),
    identity: z.enum(["repository", "any"]).default("repository"),
  })
  .strict();

/**
 * /etc/bulkhead/runtime.yaml. Every key has a default, so that an empty file is a valid one; a key that is not
 * known is refused by name. The runtime's `defaultConfig` documents them.
 */
export const Config = z
  .object({
    socket: absolutePath.default(paths.socket),
    root: absolutePath.default(paths.root),
    state: absolutePath.default(paths.state),
    handlersDir: absolutePath.default(paths.handlers),
    defaultHandler: z.string().default("runc"),
    delegate: z.object({ socket: absolutePath }).strict().nullable().default(null),
    cni: z
      .object({
        binDirs: z.array(absolutePath).min(1).default(["/opt/cni/bin"]),
        confDir: absolutePath.default("/etc/cni/net.d"),
      })
      .strict()
      .prefault({}),
    registries: z
      .object({
        mirrors: mirrors.default({}),
        configPath: absolutePath.default("/etc/bulkhead/certs.d"),
        credentials: absolutePath.nullable().default(null),
      })
      .strict()
      .prefault({}),
    images: z
      .object({
        pinned: z.array(z.string().min(1).max(512)).default([]),
        maxDownloads: z.int().min(1).max(100).default(6),
        pullProgressTimeout: z.int().min(1).max(86_400).default(300),
        signatures: z.array(signatureRule).default([]),
      })
      .strict()
      .prefault({}),
    layers: z.enum(["auto", "erofs", "directory"]).default("auto"),
    cgroupDriver: z.enum(["auto", "cgroupfs", "systemd"]).default("auto"),
    selinux: z.boolean().default(true),
    conmon: absolutePath.default("/usr/bin/conmon"),
    runtimes: z
      .array(
        HandlerConfig.refine((handler) => handler.kind !== "delegate", "a delegate belongs under delegate"),
      )
      .superRefine((handlers, { addIssue }) => {
        const names = handlers.map(({ name }) => name);
        for (const [n, name] of names.entries())
          if (names.indexOf(name) < n)
            addIssue({ code: "custom", path: [n, "name"], message: `"${name}" is there already` });
      })
      .prefault([{ name: "runc", kind: "oci", binary: "/usr/bin/runc" }]),
    log: z
      .object({
        level: z.enum(["trace", "debug", "info", "warn", "error"]).default("info"),
        format: z.enum(["json", "text"]).default("json"),
      })
      .strict()
      .prefault({}),
    metrics: z
      .object({ listen: hostPort.or(z.literal("")).default("") })
      .strict()
      .prefault({}),
    tracing: z
      .object({
        endpoint: httpUrl.or(z.literal("")).default(""),
        samplingRatio: z.number().min(0).max(1).default(1),
      })
      .strict()
      .prefault({}),
    streaming: z
      .object({ address: hostPort.default("127.0.0.1:0") })
      .strict()
      .prefault({}),
  })
  .strict();
export type Config = z.infer<typeof Config>;

/** What is wrong with a configuration, each with the path of the key; none: nothing is. */
export const configProblems = (error: z.ZodError): string[] =>
  error.issues.flatMap((issue) =>
    issue.code === "unrecognized_keys"
      ? issue.keys.map((key) => `${[...issue.path, key].join(".")}: unknown key`)
      : [[...(issue.path.length > 0 ? [issue.path.join(".")] : []), issue.message].join(": ")],
  );

/**
 * Of the runtime's configuration what a cluster decides about; everything else is Bulkhead's own on its nodes: where
 * things stand, what it fronts, its handlers (profiles bring them), and what has a value of its own in the chart.
 */
const Settings = Config.pick({
  cni: true,
  registries: true,
  images: true,
  layers: true,
  cgroupDriver: true,
  selinux: true,
  log: true,
  streaming: true,
}).partial();
/** As they are written; the defaults are the runtime's. */
export type RuntimeSettings = z.input<typeof Settings>;

/** Checks settings by the runtime's own types. Either they are as they were given, or it is told why not. */
export const readSettings = (input: unknown): { settings: RuntimeSettings } | { problem: string } => {
  const parsed = Settings.safeParse(input);
  if (parsed.success) return { settings: input as RuntimeSettings };
  const problems = configProblems(parsed.error).map((problem) => {
    const [key = "", what] = problem.split(": ");
    return what === "unknown key" && Object.hasOwn(Config.shape, key)
      ? `${key}: is Bulkhead's own on its nodes`
      : problem;
  });
  return { problem: `Cannot use runtime.config: ${problems.join("; ")}` };
};
