import { readFile } from "node:fs/promises";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { Config, configProblems } from "@bulkhead/lib/api/runtime-config.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { loadAll } from "js-yaml";

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
  let more: unknown[];
  try {
    // An empty file, or one of comments only, has no document.
    [yaml, ...more] = loadAll(text);
  } catch (error) {
    throw new RuntimeError("invalid-argument", `Cannot parse ${file}: ${messageOf(error)}`, { cause: error });
  }
  if (more.length > 0)
    throw new RuntimeError(
      "invalid-argument",
      `Cannot use ${file}: it has ${more.length + 1} documents, not one`,
    );
  return checked(yaml ?? {}, file);
};

const checked = (config: unknown, from: string): Config => {
  const parsed = Config.safeParse(config);
  if (parsed.success) return parsed.data;
  const problems = configProblems(parsed.error);
  throw new RuntimeError("invalid-argument", `Cannot use ${from}:\n  ${problems.join("\n  ")}`);
};

/** What `serve` takes on its command line, beside the file. */
export type ServeFlags = {
  socket?: string;
  root?: string;
  state?: string;
  mirror: Record<string, string[]>;
  logLevel?: Config["log"]["level"];
};

/** Flags win over the file. */
export const withFlags = (config: Config, flags: ServeFlags): Config =>
  checked(
    {
      ...config,
      socket: flags.socket ?? config.socket,
      root: flags.root ?? config.root,
      state: flags.state ?? config.state,
      registries: { ...config.registries, mirrors: { ...config.registries.mirrors, ...flags.mirror } },
      log: { ...config.log, level: flags.logLevel ?? config.log.level },
    },
    "the flags",
  );

/** Reads the file. Without one at the default place the defaults are in force. */
export const readConfig = async (file: string | undefined): Promise<Config> => {
  const path = file ?? paths.config;
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (file === undefined && error.code === "ENOENT") return "";
    throw new RuntimeError("invalid-argument", `Cannot read ${path}: ${error.message}`, { cause: error });
  });
  return parseConfig(text, path);
};
