import { join } from "node:path";
import { canaryImage } from "@bulkhead/lib/api/group.ts";
import type { HandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { kataProblem } from "@bulkhead/lib/api/kata.ts";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import type { RuntimeSettings } from "@bulkhead/lib/api/runtime-config.ts";
import { handlerKind } from "@bulkhead/lib/api/runtime-profile.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { TracingConfig } from "@bulkhead/lib/tracing/settings.ts";
import * as yaml from "js-yaml";
import * as toml from "smol-toml";
import type { Mark, Wall } from "../probe/wall.ts";
import { type Platform, runscFlags, runscSettings, tenantAnnotations } from "./gvisor.ts";
import { type NodeOfVm, revisionParameter } from "./kata/configuration.ts";
import { systemInstallation } from "./kata/installation.ts";
import { noVm, type VmFacts } from "./kata/node.ts";
import { vmCheck, vmFiles } from "./kata/profile.ts";
import { shimFiles, shimInBundle, shimProblem } from "./shim.ts";

/** What the host's files shall say. Pure: text from values. */

export const installed = {
  record: join(paths.opt, "installed.json"),
  versions: join(paths.opt, "versions"),
  artifacts: join(paths.opt, "artifacts"),
  current: join(paths.opt, "current"),
  unit: join("/etc/systemd/system", paths.unit),
  wanted: join("/etc/systemd/system/multi-user.target.wants", paths.unit),
  lock: "/run/bulkhead-agent.lock",
} as const;

export const versionDirectory = (version: string): string => join(installed.versions, version);
/** The directory of an artifact, by the digest that its image names: its files below root/, and the list of them. */
export const artifactDirectory = (image: string): string =>
  join(installed.artifacts, image.slice(image.indexOf("@sha256:") + "@sha256:".length));

/**
 * Where the programs that a profile brings stand on the node: bin/NAME below it, and whatever else its artifact holds
 * (of Kata: what its static release has below /opt/kata). `version` is the bundle's, for profiles without an artifact.
 */
export const programRoot = ({ artifact }: Pick<DesiredProfile, "artifact">, version: string): string =>
  artifact.image === undefined ? versionDirectory(version) : join(artifactDirectory(artifact.image), "root");

export const handlerFile = (profile: string): string => join(paths.handlers, `${profile}.yaml`);
/** Of one revision alone: the shim reads it for each container, and those of a running pod go on with its programs. */
const runscFile = ({ name, revision }: Pick<DesiredProfile, "name" | "revision">): string =>
  join("/etc/bulkhead/runsc", `${name}.${revision}.toml`);
/** Files of one revision, which stay as long as a pod of that revision does. */
export const ofOneRevision = /^\/etc\/bulkhead\/(runsc|kata|shim)\//;

const header = "# Written by Bulkhead's node agent; changes are overwritten.\n";

/** Where files stand that the cluster's settings of the runtime name: keys, certificates, credentials. */
export const settingsDirectory = "/etc/bulkhead/files";

/** The variables by which programs are told of a proxy. */
const proxyVariables = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"] as const;

/** Of an environment what tells of a proxy. */
export const proxyOf = (env: Readonly<Record<string, string | undefined>>): Record<string, string> =>
  Object.fromEntries(
    proxyVariables.flatMap((name): [string, string][] => {
      const value = env[name];
      return value === undefined || value === "" ? [] : [[name, value]];
    }),
  );

/** One assignment as systemd reads it (systemd.exec(5), Environment=). */
const assignment = ([name, value]: [string, string]): string => {
  if (/\p{Cc}/u.test(value))
    throw new RuntimeError("invalid-argument", `Cannot set ${name}: it has control characters`);
  return `Environment="${name}=${value.replaceAll(/["\\]/g, "\\$&").replaceAll("%", "%%")}"\n`;
};

/**
 * The systemd unit of the runtime. `proxy`: variables for its pulls. A file of the cluster's settings may say more, and
 * what is not for everybody to read: a unit is.
 */
export const unitFile = (proxy: Readonly<Record<string, string>> = {}): string => `${header}[Unit]
Description=Bulkhead container runtime (CRI)
After=network.target local-fs.target dbus.service containerd.service crio.service cri-docker.service
Before=kubelet.service
StartLimitIntervalSec=0

[Service]
Type=exec
${Object.entries(proxy).map(assignment).join("")}EnvironmentFile=-${settingsDirectory}/runtime.env
ExecStart=${paths.opt}/current/bin/node ${paths.opt}/current/runtime/main.mjs serve --config ${paths.config}
Restart=always
RestartSec=1
# Monitors and shims of running pods must survive the daemon.
KillMode=process
# No MemoryMax, as shims are in this cgroup, too: the daemon measures itself.
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
`;

/** Where engines have their registries as a rule: the file format is containerd's (hosts.toml). */
export const certsDirectory = "/etc/containerd/certs.d";

/** The directory of registries that a configuration of ours names. */
export const configPathIn = (config: string): string | undefined =>
  /^ {2}configPath: (\/\S+)$/m.exec(config)?.[1];

/** Where the runtime serves its metrics; the agent passes them on. */
export const runtimeMetrics = "127.0.0.1:9474";

/**
 * The runtime's configuration: it fronts `former`, the engine that served the kubelet before. `settings` are the
 * cluster's; they hold none of what is said here of places.
 */
export const runtimeConfig = (
  version: string,
  former: string,
  tracing: TracingConfig,
  settings: RuntimeSettings = {},
  registries: string = certsDirectory,
): string =>
  header +
  yaml.dump({
    ...settings,
    socket: paths.socket,
    root: paths.root,
    state: paths.state,
    handlersDir: paths.handlers,
    conmon: join(versionDirectory(version), "bin/conmon"),
    // Every pod that names no handler of ours is the former engine's.
    runtimes: [],
    delegate: { socket: former },
    // Where engines and distributions keep plugins; a directory that is not there is passed over.
    cni: { binDirs: ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"], ...settings.cni },
    registries: {
      configPath: registries,
      ...settings.registries,
      mirrors: {
        ...settings.registries?.mirrors,
        [canaryImage.split("/")[0] ?? ""]: [`oci:${versionDirectory(version)}/canary`],
      },
    },
    metrics: { listen: runtimeMetrics },
    ...(tracing.endpoint === "" ? {} : { tracing }),
  });

/** What the bundle and the node can run. `vm`: undefined where nobody looked. `shim`: where the profile's stands. */
export type Supplies = { has(path: string): boolean; vm?: VmFacts | undefined; shim?: string | undefined };

/** What a profile's files say of the node: what its guests may have, and where the profile's shim stands. */
export type NodeOfProfile = NodeOfVm & { shim?: string | undefined };

/** Why this node cannot serve the profile whatever is tried, or undefined. */
export function unsupported(profile: DesiredProfile, bundle: Supplies): string | undefined {
  const kind = handlerKind(profile);
  const has = (program: string): boolean => profile.artifact.image !== undefined || bundle.has(program);
  switch (kind) {
    case "runc":
    case "crun":
      return has(`bin/${kind}`) ? undefined : `this agent's image does not bring ${kind}`;
    case "gvisor":
      return has("bin/runsc") ? undefined : "this agent's image does not bring runsc";
    case "kata":
    case "firecracker": {
      const problem = profile.handler.kata && kataProblem(profile.handler.kata);
      return problem === undefined
        ? noVm(profile, kataRoot(profile, ""), bundle.vm)
        : `handler.kata: ${problem}`;
    }
    case "shim":
      return shimProblem(profile, bundle.shim);
  }
}

/** The program of the bundle that boots a guest to see whether KVM does. */
export const kvmProbe = "bin/bulkhead-kvm-probe";

/** Where the Kata of a profile stands: in its artifact, or what the node has already. */
export const kataRoot = (profile: Pick<DesiredProfile, "artifact">, version: string): string =>
  profile.artifact.image === undefined ? systemInstallation : programRoot(profile, version);

/** The program that a profile stands on, by its path below {@link programRoot}. */
function programOf(profile: Pick<DesiredProfile, "handler">): string {
  const kind = handlerKind(profile);
  return kind === "gvisor" ? "bin/runsc" : `bin/${kind}`;
}

/** All programs that the profile's handler runs, by their paths below {@link programRoot}. */
export const programsOf = (profile: Pick<DesiredProfile, "handler">): string[] => {
  switch (handlerKind(profile)) {
    case "gvisor":
      return ["bin/runsc", "bin/containerd-shim-runsc-v1"];
    case "kata":
    case "firecracker":
      return [];
    case "shim":
      return [shimInBundle(profile)];
    default:
      return [programOf(profile)];
  }
};

/**
 * A command line that succeeds when the profile's program runs on the node and takes the profile's flags. It changes
 * nothing: it asks gVisor for the sandboxes of a directory that is not there, and an OCI runtime for its version.
 */
export function checkOf(
  profile: Pick<DesiredProfile, "handler" | "artifact">,
  version: string,
  platform: Platform,
  node: NodeOfProfile,
): string[] {
  if (isVm(profile)) return vmCheck(profile, kataRoot(profile, version), node);
  if (profile.handler.shim) return [node.shim ?? "", "-v"];
  const program = join(programRoot(profile, version), programOf(profile));
  const { gvisor, runc, crun } = profile.handler;
  if (gvisor === undefined) return [program, ...((runc ?? crun)?.flags ?? []), "--version"];
  // As the shim passes what stands in its file.
  const flags = Object.entries(runscFlags(gvisor, platform)).map(([name, value]) => `--${name}=${value}`);
  return [program, "--root=/run/bulkhead-agent.check", ...flags, "list"];
}

export const isVm = ({ handler }: Pick<DesiredProfile, "handler">): boolean =>
  handler.kata !== undefined || handler.firecracker !== undefined;

/** The wall that a profile's canary must find. `chosen`: the platform that `auto` of gVisor came to. */
export const wallOf = (
  profile: Pick<DesiredProfile, "handler" | "revision">,
  chosen?: Platform,
): { wall: Wall; mark?: Mark } => {
  if (profile.handler.shim) return { wall: profile.handler.shim.wall };
  if (isVm(profile)) return { wall: "vm", mark: { parameter: revisionParameter(profile.revision) } };
  const { gvisor } = profile.handler;
  if (gvisor === undefined) return { wall: "namespaces" };
  const { network } = gvisor;
  const platform = gvisor.platform === "auto" ? chosen : gvisor.platform;
  return {
    wall: "kernel",
    mark: { engine: "gvisor", network, ...(platform === undefined ? {} : { platform }) },
  };
};

/** The files that make a profile's handler: path → text. */
export function profileFiles(
  profile: DesiredProfile,
  version: string,
  platform: Platform,
  node: NodeOfProfile,
): Record<string, string> {
  const bin = (name: string): string => join(programRoot(profile, version), "bin", name);
  const kind = handlerKind(profile);
  const base = { name: profile.name, revision: profile.revision };
  const dump = (config: Partial<HandlerConfig>): string => header + yaml.dump(config);
  switch (kind) {
    case "runc":
    case "crun":
      return {
        [handlerFile(profile.name)]: dump({
          ...base,
          kind: "oci",
          binary: bin(kind),
          flags: profile.handler[kind]?.flags ?? [],
        }),
      };
    case "gvisor": {
      const { gvisor } = profile.handler;
      if (gvisor === undefined)
        throw new RuntimeError("internal", "A profile of gVisor has no gvisor settings");
      const root = join(paths.state, "runsc");
      return {
        [runscFile(profile)]:
          header +
          toml.stringify({
            binary_name: bin("runsc"),
            root,
            runsc_config: runscFlags(gvisor, platform),
          }),
        [handlerFile(profile.name)]: dump({
          ...base,
          kind: "shim",
          binary: bin("containerd-shim-runsc-v1"),
          optionsTypeUrl: "io.containerd.runsc.v1.options",
          configPath: runscFile(profile),
          wall: "kernel",
          allowedAnnotations: tenantAnnotations(gvisor),
          runsc: { binary: bin("runsc"), root, ...runscSettings(gvisor) },
        }),
      };
    }
    case "kata":
    case "firecracker": {
      const { configuration, handler } = vmFiles(profile, kataRoot(profile, version), node);
      return {
        [configuration.path]: header + configuration.text,
        [handlerFile(profile.name)]: dump(handler),
      };
    }
    case "shim": {
      const { options, handler } = shimFiles(profile, node.shim ?? "");
      return {
        // The shim's own format: it may know no comments.
        ...(options === undefined ? {} : { [options.path]: options.text }),
        [handlerFile(profile.name)]: dump(handler),
      };
    }
  }
}
