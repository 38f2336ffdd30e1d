import { mkdir, readFile, rm, rmdir, writeFile } from "node:fs/promises";
import { Socket } from "node:net";
import { join } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";
import { throwExhausted } from "../linux/exhausted.ts";
import { type Linux, MountFlags } from "../linux/linux.ts";
import { createAttachments } from "./attachments.ts";
import { createConfig } from "./config.ts";
import { endPlugins } from "./leftover-plugins.ts";
import { createNamespaces, isPinned, removeNamespaces } from "./namespaces.ts";
import type { Network, NetworkPod } from "./network.ts";
import {
  addressesOf,
  type CniCommand,
  type CniNetwork,
  type CniPlugin,
  capabilitiesOf,
  cidrsOf,
  executionConfig,
  executionEnv,
  hasStatus,
  isIdle,
  keptResult,
  POD_INTERFACE,
  parseNetwork,
  parseResult,
} from "./plan.ts";
import { findPlugin, runPlugin } from "./plugin.ts";

export type CniOptions = {
  /** Where plugins are looked for, in order: /opt/cni/bin. */
  binDirs: string[];
  /** Where network configurations are: /etc/cni/net.d. */
  confDir: string;
  /** Folder on disk that outlives a boot, for what must be told to plugins after one. */
  attachments: string;
  /** Folder on tmpfs for network namespaces of pods that are gone, which plugins are still to be told of. */
  left: string;
  /** A plugin that takes longer is killed. */
  pluginTimeoutMs?: number;
};

const PLUGIN_TIMEOUT_MS = 60_000;
/** kubelet asks for the status every few seconds; its answer may be this old. */
const STATUS_MS = 10_000;
/** With more attachments on disk than a node has pods, none is left for later: a pod waits for its DEL instead. */
const MOST_ATTACHMENTS = 1000;
/** File in the directory of a pod that an earlier version attached: what attachments have now. */
const KEPT = "cni.json";

const Kept = z.object({
  config: z.unknown(),
  raw: z.unknown().optional(),
  addresses: z.array(z.string()).optional(),
});
type Kept = z.infer<typeof Kept>;

type NetworkLinux = Pick<
  Linux,
  | "statfs"
  | "pinNamespaces"
  | "mount"
  | "umount"
  | "linkUp"
  | "addAddress"
  | "addresses"
  | "addBridge"
  | "dialIn"
>;

/** Attaches pods by executing CNI plugins, any plugins, as the CNI specification 1.1 says. */
export const createNetwork = (options: CniOptions, linux: NetworkLinux): Network => {
  const { binDirs, confDir, pluginTimeoutMs = PLUGIN_TIMEOUT_MS } = options;
  const config = createConfig(confDir);
  const attachments = createAttachments(options.attachments);
  let status: { network: CniNetwork; at: number; answer: Promise<string | undefined> } | undefined;

  const execute = async (
    command: CniCommand,
    network: CniNetwork,
    plugin: CniPlugin,
    pod: NetworkPod | undefined,
    previous: unknown,
    signal: AbortSignal,
  ): Promise<string> => {
    const what = `run CNI plugin "${plugin.type}" (${command}, network "${network.name}")`;
    const path = await findPlugin(plugin.type, binDirs);
    if (path === undefined)
      throw new RuntimeError("unavailable", `Cannot ${what}: it is not in ${binDirs.join(", ")}`);
    return await runPlugin(
      path,
      executionEnv(command, binDirs, pod),
      executionConfig(network, plugin, pod === undefined ? {} : capabilitiesOf(pod), previous),
      what,
      AbortSignal.any([signal, AbortSignal.timeout(pluginTimeoutMs)]),
    );
  };

  const statusOf = async (network: CniNetwork): Promise<string | undefined> => {
    for (const plugin of network.plugins)
      if ((await findPlugin(plugin.type, binDirs)) === undefined)
        return `CNI plugin "${plugin.type}" of network "${network.name}" is not in ${binDirs.join(", ")}`;
    if (!hasStatus(network)) return undefined;
    if (status?.network !== network || performance.now() - status.at > STATUS_MS)
      status = { network, at: performance.now(), answer: askPlugins(network) };
    return await status.answer;
  };

  const askPlugins = async (network: CniNetwork): Promise<string | undefined> => {
    for (const plugin of network.plugins) {
      try {
        await execute("STATUS", network, plugin, undefined, undefined, AbortSignal.timeout(STATUS_MS));
      } catch (error) {
        return messageOf(error);
      }
    }
    return undefined;
  };

  const del = async (
    network: CniNetwork,
    pod: NetworkPod,
    previous: unknown,
    signal: AbortSignal,
  ): Promise<void> => {
    const failures: unknown[] = [];
    // One plugin's failure keeps no other from giving back what it holds; the caller tries all again.
    for (const plugin of network.plugins.toReversed()) {
      if (isIdle(plugin, pod, previous)) continue;
      await execute("DEL", network, plugin, pod, previous, signal).catch((error) => failures.push(error));
    }
    if (failures.length > 0) throw failures[0];
  };

  /** Its namespace stays too: plugins find by it what to undo. */
  const leave = async ({ id, netns }: NetworkPod): Promise<void> => {
    const file = join(leftOf(id), "net");
    if (netns === "" || !isPinned(netns, linux) || isPinned(file, linux)) return;
    await mkdir(leftOf(id), { recursive: true, mode: 0o700 });
    await writeFile(file, "", { mode: 0o600 });
    await linux.mount(netns, file, "", MountFlags.BIND, "");
  };
  const leftOf = (id: string): string => join(options.left, id);

  /** DEL, by what was written down, in the pod's namespace where that is left. */
  const giveBack = async (pod: NetworkPod, kept: Kept, signal: AbortSignal): Promise<void> => {
    const netns = pod.netns !== "" && isPinned(pod.netns, linux) ? pod.netns : "";
    if (netns !== "") restoreInterface(netns, await cidrsToUndo(pod, netns, kept), linux);
    await del(parseNetwork(kept.config), { ...pod, netns }, kept.raw, signal);
    await removeNamespaces(leftOf(pod.id), linux);
    await rmdir(options.left).catch(() => {});
  };

  /**
   * Addresses that the plugins of this pod made things for. An ADD that was cut short told none: what it left on the
   * interface is written down before the first DEL, which takes the interface away and may be cut short as well.
   */
  const cidrsToUndo = async (pod: NetworkPod, netns: string, kept: Kept): Promise<string[]> => {
    if (kept.raw !== undefined) return cidrsOf(keptResult(kept.raw));
    if (kept.addresses !== undefined) return kept.addresses;
    // Those of an ADD that outlived its daemon would still be at work.
    await endPlugins(pod.id);
    const addresses = linux.addresses(netns, POD_INTERFACE).filter((cidr) => !cidr.startsWith("fe80:"));
    // A disk that takes nothing now keeps nothing else from being given back.
    if (addresses.length > 0) await attachments.note(pod, { ...kept, addresses }).catch(() => {});
    return addresses;
  };

  /** What was written down of an attachment; of a pod of an earlier version, in its own directory, too. */
  const keptOf = async (pod: NetworkPod): Promise<Kept | undefined> => {
    const noted = await attachments.of(pod.id);
    const text = await readFile(join(pod.dir, KEPT), "utf8").catch((error: unknown) => {
      throwExhausted(error);
      return undefined;
    });
    if (text === undefined) return noted;
    return { ...Kept.parse(JSON.parse(text)), ...noted };
  };

  return {
    async notReady() {
      const loaded = await config();
      return "missing" in loaded ? loaded.missing : await statusOf(loaded.network);
    },

    createNamespaces: (dir, which, hostname) => createNamespaces(dir, which, hostname, linux),
    removeNamespaces: (dir) => removeNamespaces(dir, linux),

    async attach(pod, signal) {
      const loaded = await config();
      if ("missing" in loaded)
        throw new RuntimeError("unavailable", `Cannot attach pod to a network: ${loaded.missing}`);
      const { network } = loaded;
      // Before the first plugin runs: an ADD that fails half-way is undone with the configuration it had.
      await attachments.note(pod, { config: network });
      linux.linkUp(pod.netns, "lo");
      let raw: ReturnType<typeof parseResult> | undefined;
      for (const plugin of network.plugins) {
        if (isIdle(plugin, pod, raw)) continue;
        const output = await execute("ADD", network, plugin, pod, raw, signal);
        try {
          raw = parseResult(output);
        } catch (error) {
          throw new RuntimeError(
            "unavailable",
            `Cannot use the result of CNI plugin "${plugin.type}" (network "${network.name}"): ${reasonOf(error)}`,
            { cause: error },
          );
        }
      }
      const ips = addressesOf(raw ?? {});
      if (ips.length === 0)
        throw new RuntimeError(
          "unavailable",
          `Cannot attach pod to network "${network.name}": its plugins gave no address`,
        );
      await attachments.note(pod, { config: network, raw });
      return { ips, raw, config: network };
    },

    async detach(pod, result, signal, onLeft) {
      const kept: Kept | undefined = result ?? (await keptOf(pod));
      // Without either, ADD never began.
      if (kept === undefined) return;
      try {
        await giveBack(pod, kept, signal);
      } catch (error) {
        const mayWait = onLeft !== undefined && kept.raw === undefined;
        if (!mayWait || (await attachments.count()) > MOST_ATTACHMENTS) throw error;
        await leave(pod);
        onLeft(error);
        return;
      }
      // A disk that is read-only now keeps it, and the next boot asks for the same once more.
      await attachments.forget(pod.id).catch(() => {});
      await rm(join(pod.dir, KEPT), { force: true });
    },

    async detachFormer(known, signal) {
      let left = 0;
      for (const { pod, ...kept } of await attachments.former(known)) {
        try {
          signal.throwIfAborted();
          await giveBack({ ...pod, netns: join(leftOf(pod.id), "net") }, kept, signal);
          await attachments.forget(pod.id);
        } catch {
          left++;
        }
      }
      return left;
    },

    async dial(netns, port, signal) {
      const failures: string[] = [];
      for (const host of ["127.0.0.1", "::1"] as const) {
        signal.throwIfAborted();
        try {
          const fd = await linux.dialIn(netns, host, port);
          const socket = new Socket({ fd, allowHalfOpen: true, readable: true, writable: true });
          if (signal.aborted) socket.destroy();
          signal.throwIfAborted();
          return socket.setNoDelay(true);
        } catch (error) {
          if (signal.aborted) throw error;
          failures.push(messageOf(error));
        }
      }
      throw new RuntimeError(
        "unavailable",
        `Cannot connect to port ${port} in the pod: ${failures.join("; ")}`,
      );
    },
  };
};

/**
 * Puts back the addresses that ADD gave and that are no longer on the pod's interface, on an empty bridge of its name
 * when that is gone. Plugins find by them what to undo (bridge and ptp: their masquerade rules), but a DEL that was cut
 * short has removed the interface, gVisor takes the addresses into its own stack, and a pod with NET_ADMIN may do what
 * it likes. Mere help: the kernel may refuse it.
 */
const restoreInterface = (
  netns: string,
  cidrs: readonly string[],
  linux: Pick<Linux, "addAddress" | "addBridge">,
): void => {
  try {
    if (cidrs.length > 0) linux.addBridge(netns, POD_INTERFACE);
    for (const cidr of cidrs) linux.addAddress(netns, POD_INTERFACE, cidr);
  } catch {
    // DEL is to be run whatever the interface is like.
  }
};

const reasonOf = (error: unknown): string =>
  error instanceof z.ZodError ? z.prettifyError(error) : messageOf(error);
