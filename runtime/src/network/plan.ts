import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";
import type { NetworkPod } from "./network.ts";

/** The newest version of the CNI specification that we speak. */
export const CNI_VERSION = "1.1.0";
const KNOWN_VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", CNI_VERSION];

/** The interface that plugins make in the pod. */
export const POD_INTERFACE = "eth0";

const networkName = z.string().regex(/^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/, "is not a network name");
const version = z.string().regex(/^\d+\.\d+\.\d+$/, "is not a version");

/** One plugin of a network: what it must say to us; everything else is its own affair and passed on untouched. */
const PluginConfig = z.looseObject({
  // A type is a file name looked up in the plugin directories, never a path.
  type: z
    .string()
    .regex(/^[^/\0]+$/, "is not a file name")
    .refine((type) => type !== "." && type !== ".."),
  capabilities: z.record(z.string(), z.boolean()).optional(),
});

/** Network configuration list (CNI specification 1.1, section 1). */
export const NetworkList = z.looseObject({
  cniVersion: version.optional(),
  cniVersions: z.array(version).optional(),
  name: networkName,
  loadOnlyInlinedPlugins: z.boolean().optional(),
  plugins: z.array(PluginConfig).default([]),
});

/** A network with its version settled and all its plugins in place. */
const Network = z.object({
  name: networkName,
  cniVersion: version,
  plugins: z.array(PluginConfig).min(1),
});
export type CniNetwork = z.infer<typeof Network>;
export type CniPlugin = z.infer<typeof PluginConfig>;

/** The network as it was kept with a pod. */
export const parseNetwork = (kept: unknown): CniNetwork => Network.parse(kept);

/**
 * The network that the text of a configuration file describes; undefined when its kind of file or content is
 * none. `folded` are the plugins of the directory named like the network (section 1, loadOnlyInlinedPlugins).
 */
export const networkOf = (file: string, text: string, folded: (network: string) => string[]): CniNetwork => {
  const json: unknown = JSON.parse(text);
  if (!file.endsWith(".conflist")) {
    const plugin = PluginConfig.extend({ name: networkName, cniVersion: version.optional() }).parse(json);
    return { name: plugin.name, cniVersion: plugin.cniVersion ?? "0.1.0", plugins: [plugin] };
  }
  const list = NetworkList.parse(json);
  const more = list.loadOnlyInlinedPlugins ? [] : folded(list.name).map((one) => parsePlugin(one));
  return Network.parse({
    name: list.name,
    cniVersion: newest([...(list.cniVersions ?? []), ...(list.cniVersion ? [list.cniVersion] : [])]),
    plugins: [...list.plugins, ...more],
  });
};

const parsePlugin = (text: string): CniPlugin => PluginConfig.parse(JSON.parse(text));

/** The highest version that both sides know; what the list says when we know none of it, for the plugin to judge. */
const newest = (versions: string[]): string =>
  KNOWN_VERSIONS.findLast((known) => versions.includes(known)) ?? versions[0] ?? "0.1.0";

/** True for a network whose plugins know STATUS and GC. */
export const hasStatus = (network: CniNetwork): boolean =>
  KNOWN_VERSIONS.indexOf(network.cniVersion) >= KNOWN_VERSIONS.indexOf("1.1.0");

export type CniCommand = "ADD" | "DEL" | "STATUS";

/** What the runtime tells one plugin on stdin (section 2, "Execution configuration"). */
export const executionConfig = (
  network: CniNetwork,
  plugin: CniPlugin,
  capabilities: Record<string, unknown>,
  previous: unknown,
): string => {
  const { capabilities: wanted = {}, ...own } = plugin;
  const runtimeConfig = Object.fromEntries(
    Object.entries(capabilities).filter(([name]) => Object.hasOwn(wanted, name) && wanted[name]),
  );
  return JSON.stringify({
    ...own,
    cniVersion: network.cniVersion,
    name: network.name,
    ...(Object.keys(runtimeConfig).length === 0 ? {} : { runtimeConfig }),
    ...(previous === undefined ? {} : { prevResult: previous }),
  });
};

/** The plugin's environment (section 2, "Parameters"). */
export const executionEnv = (
  command: CniCommand,
  binDirs: string[],
  pod: NetworkPod | undefined,
): Record<string, string> => ({
  CNI_COMMAND: command,
  CNI_PATH: binDirs.join(":"),
  ...(pod === undefined
    ? {}
    : {
        CNI_CONTAINERID: pod.id,
        CNI_NETNS: pod.netns,
        CNI_IFNAME: POD_INTERFACE,
        CNI_ARGS: cniArgs(pod),
      }),
});

const cniArgs = (pod: NetworkPod): string =>
  Object.entries({
    IgnoreUnknown: "1",
    K8S_POD_NAMESPACE: pod.namespace,
    K8S_POD_NAME: pod.name,
    K8S_POD_INFRA_CONTAINER_ID: pod.id,
    K8S_POD_UID: pod.uid,
  })
    .map(([key, value]) => `${key}=${value}`)
    .join(";");

/**
 * Refuses a pod whose names CNI cannot be told: CNI_ARGS has no escape, so that such a value would add arguments of its
 * own. Before anything is made: the DEL that takes a pod down is told them, too.
 */
export const requireArgs = (names: Readonly<Record<string, string>>): void => {
  for (const [key, value] of Object.entries(names))
    if (/[;=\0]/.test(value))
      throw new RuntimeError(
        "invalid-argument",
        `Cannot run pod: its ${key} "${value}" has ";", "=" or a NUL`,
      );
};

/** What we can offer a plugin that declares the capability (CNI conventions). */
export const capabilitiesOf = (pod: NetworkPod): Record<string, unknown> => {
  const portMappings = pod.portMappings
    .filter(({ hostPort }) => hostPort > 0)
    .map(({ hostPort, containerPort, protocol, hostIp }) => ({
      hostPort,
      containerPort,
      protocol,
      ...(hostIp === "" ? {} : { hostIP: hostIp }),
    }));
  const bandwidth = bandwidthOf(pod);
  return {
    ...(portMappings.length === 0 ? {} : { portMappings }),
    ...(bandwidth === undefined ? {} : { bandwidth }),
    ...(pod.dns === undefined ? {} : { dns: pod.dns }),
    ...(pod.cgroupParent === "" ? {} : { cgroupPath: pod.cgroupParent }),
    "io.kubernetes.cri.pod-annotations": pod.annotations,
  };
};

/**
 * True for a plugin that would do nothing for this pod but pass on the result of the one before it: portmap without a
 * port to map. It costs a start 6 ms of 75, and its end as much, for three programs that are run for nothing.
 */
export const isIdle = (plugin: CniPlugin, pod: NetworkPod, previous: unknown): boolean =>
  plugin.type === "portmap" &&
  plugin.capabilities?.portMappings === true &&
  previous !== undefined &&
  capabilitiesOf(pod).portMappings === undefined;

const BURST = 2 ** 31 - 1;

const bandwidthOf = ({ bandwidth }: NetworkPod): Record<string, number> | undefined => {
  const { ingress, egress } = bandwidth ?? {};
  if (ingress === undefined && egress === undefined) return undefined;
  return {
    ...(ingress === undefined ? {} : { ingressRate: ingress, ingressBurst: BURST }),
    ...(egress === undefined ? {} : { egressRate: egress, egressBurst: BURST }),
  };
};

/** Result of ADD as far as we use it (section 5); versions before 0.3.0 have ip4 and ip6 instead of ips. */
const Result = z.looseObject({
  interfaces: z.array(z.looseObject({ name: z.string(), sandbox: z.string().optional() })).nullish(),
  ips: z.array(z.looseObject({ address: z.string(), interface: z.number().int().nullish() })).nullish(),
  ip4: z.looseObject({ ip: z.string() }).nullish(),
  ip6: z.looseObject({ ip: z.string() }).nullish(),
});

/** Parses what a plugin printed at ADD. */
export const parseResult = (text: string): z.infer<typeof Result> => Result.parse(JSON.parse(text));

/** The result as it was kept with a pod; an empty one when ADD did not come so far. */
export const keptResult = (raw: unknown): z.infer<typeof Result> => Result.parse(raw ?? {});

/** Addresses of the pod's own interface, IPv4 first, without prefix length. */
export const addressesOf = (result: z.infer<typeof Result>): string[] => {
  const all = cidrsOf(result).map((address) => address.split("/", 1)[0]!);
  const only = (family: z.ZodType) => [
    ...new Set(all.filter((address) => family.safeParse(address).success)),
  ];
  return [...only(z.ipv4()), ...only(z.ipv6())];
};

/** Addresses of the pod's own interface with their prefix lengths, as the plugins said them. */
export const cidrsOf = (result: z.infer<typeof Result>): string[] => {
  const interfaces = result.interfaces ?? [];
  const own = (index: number | null | undefined) => {
    if (index === undefined || index === null || interfaces.length === 0) return true;
    const at = interfaces[index];
    return at !== undefined && at.name === POD_INTERFACE && (at.sandbox ?? "") !== "";
  };
  return [
    ...(result.ips ?? []).filter((ip) => own(ip.interface)).map((ip) => ip.address),
    ...(result.ip4 ? [result.ip4.ip] : []),
    ...(result.ip6 ? [result.ip6.ip] : []),
  ];
};

const PluginError = z.looseObject({
  code: z.number(),
  msg: z.string().optional(),
  details: z.string().optional(),
});

/** What a failed plugin has to say (section 5, "Error"), or else the end of its stderr. */
export const failureOf = (stdout: string, stderr: string): { code?: number; message: string } => {
  try {
    const { code, msg, details } = PluginError.parse(JSON.parse(stdout));
    return { code, message: [msg, details].filter((part) => part).join(": ") || `code ${code}` };
  } catch {
    return { message: lastLines(stderr) || lastLines(stdout) || "it said nothing" };
  }
};

const lastLines = (text: string): string => text.trim().slice(-1000);

/** Files of a configuration directory in the order in which the first valid one wins. */
export const candidates = (names: string[]): string[] =>
  names
    .filter((name) => /\.(conflist|conf|json)$/.test(name) && !name.startsWith("."))
    // By bytes, as every other runtime sorts them.
    .sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
