import { readFile } from "node:fs/promises";
import { HandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { endpointPattern } from "@bulkhead/lib/tracing/settings.ts";
import { loadAll } from "js-yaml";
import * as z from "zod";

const absolutePath = z.string().regex(/^\/[^\0]*$/, "must be an absolute path");
const hostPort = z.string().regex(/^\S*:\d{1,5}$/, "must be HOST:PORT");
const url = z
  .string()
  .regex(
    /^(https?:\/\/[^\s/]+|oci:(\/\/)?\/\S+)/,
    "must be an http or https URL, or oci:/DIRECTORY of an image layout",
  );

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
 * known is refused by name. `defaultConfig` documents them.
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
        mirrors: z.record(z.string(), z.array(url)).default({}),
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

/** The documented default configuration. It parses to the defaults (a test holds it to that). */
export const defaultConfig = `# Configuration of bulkhead-runtime. Every key may be left out; these are the defaults.

# The CRI socket that kubelet connects to.
socket: ${paths.socket}
# Images and container file systems.
root: ${paths.root}
# What is valid until reboot: records, namespaces, bundles. Must be on tmpfs.
state: ${paths.state}
# One file per handler, NAME.yaml, loaded as soon as it is there.
handlersDir: ${paths.handlers}
# The handler of pods that name none.
defaultHandler: runc

# The engine that the node had before: requests for handlers and ids that are not ours go to its socket.
# delegate:
#   socket: /run/containerd/containerd.sock
delegate: null

# Pod networks, by the CNI specification.
cni:
  binDirs: [/opt/cni/bin]
  confDir: /etc/cni/net.d

registries:
  # Host of a registry: URLs to ask before it.
  # mirrors:
  #   registry.k8s.io: ["http://10.0.0.1:5000"]
  mirrors: {}
  # By registry, read at each pull: HOST:PORT/hosts.toml in containerd's format (mirrors, capabilities, ca, client,
  # skip_verify, header, override_path; _default for all others), or HOST:PORT/{ca.crt,client.cert,client.key}.
  configPath: /etc/bulkhead/certs.d
  # A docker config.json (auths, credHelpers, credsStore) for pulls that bring no credentials. Read at each pull.
  # credentials: /etc/bulkhead/registry-credentials.json
  credentials: null

images:
  # Images that kubelet never collects: globs of REGISTRY/REPOSITORY:TAG; * stays within a part of the path, ** does not.
  # pinned: ["registry.k8s.io/pause:*"]
  pinned: []
  # Layers fetched at a time, over all pulls.
  maxDownloads: 6
  # Seconds after which a pull fails to which nothing comes any more.
  pullProgressTimeout: 300
  # Who must have signed which images (cosign, public keys in PEM). The first rule that names an image decides, one of
  # its keys suffices; no keys: no signature is needed. identity: any takes signatures made under another repository.
  # signatures:
  #   - images: ["registry.example/prod/**"]
  #     keys: [/etc/bulkhead/keys/prod.pub]
  #     identity: repository
  signatures: []

# What a layer of an image becomes: a directory, or one EROFS image that is checked by its digest and mounted read-only.
# auto: erofs where the kernel mounts image files (Linux 6.12). Layers that are there already stay as they are.
layers: auto

# auto: systemd where it manages a cgroup v2 tree, else cgroupfs. kubelet asks us for it.
cgroupDriver: auto

# Where SELinux is on: containers get labels of their own, and volumes theirs. false: nothing is labelled.
selinux: true

# The monitor of each container under an OCI runtime.
conmon: /usr/bin/conmon

# Handlers that are always there; a file in handlersDir of the same name wins. restoreCheckpoints: true lets containers
# of an OCI runtime go on from checkpoints, by which whoever wrote one has the node.
runtimes:
  - name: runc
    kind: oci
    binary: /usr/bin/runc

log:
  # trace, debug, info, warn or error
  level: info
  # json, or text for people
  format: json

metrics:
  # HOST:PORT of /metrics, /healthz and /readyz; "" turns them off.
  listen: ""

tracing:
  # Base URL of an OTLP receiver (HTTP with protobuf, port 4318 as a rule), such as http://127.0.0.1:4318; "": the
  # environment variables of OpenTelemetry decide, and without them there are no traces.
  endpoint: ""
  # Of the calls whose callers trace nothing, such a part is traced, from 0 to 1; else it is as the caller says.
  samplingRatio: 1

streaming:
  # HOST:PORT of exec, attach and port-forward, for kubelet alone; port 0 takes a free one.
  address: 127.0.0.1:0
`;

/** Parses a configuration; messages name the path of the key. */
export const parseConfig = (text: string, file: string): Config => {
  let yaml: unknown;
  try {
    // An empty file, or one of comments only, has no document.
    [yaml] = loadAll(text);
  } catch (error) {
    throw new RuntimeError("invalid-argument", `Cannot parse ${file}: ${messageOf(error)}`, { cause: error });
  }
  const parsed = Config.safeParse(yaml ?? {});
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.flatMap((issue) =>
    issue.code === "unrecognized_keys"
      ? issue.keys.map((key) => `${[...issue.path, key].join(".")}: unknown key`)
      : [`${issue.path.join(".")}: ${issue.message}`],
  );
  throw new RuntimeError("invalid-argument", `Cannot use ${file}:\n  ${problems.join("\n  ")}`);
};

/** Reads the file. Without one at the default place the defaults are in force. */
export const readConfig = async (file: string | undefined): Promise<Config> => {
  const path = file ?? paths.config;
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (file === undefined && error.code === "ENOENT") return "";
    throw new RuntimeError("invalid-argument", `Cannot read ${path}: ${error.message}`, { cause: error });
  });
  return parseConfig(text, path);
};
