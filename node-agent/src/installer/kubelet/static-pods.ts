import { lstat, readFile } from "node:fs/promises";
import { basename, isAbsolute, join } from "node:path";
import { connectCri } from "@bulkhead/lib/cri/client.ts";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { z } from "zod";
import { endStaticCanary, type StaticPods } from "../../probe/static-pod.ts";
import type { Installer } from "../context.ts";
import { findKubelet, kubeletView } from "../facts.ts";
import type { RecordFile } from "../ownership.ts";
import type { RunningKubelet } from "./holder.ts";
import { type KubeletView, settingOf } from "./setting.ts";

/** The kubelet's static pods: where it takes them from, and a canary among them. */

/** The kubelet's default (k8s.io/kubelet/config/v1beta1, maxPods). */
const defaultMaxPods = 110;

/**
 * The directory of a kubelet's static pods, and how many pods it runs. Undefined where it has none, and where no API
 * server tells it of a RuntimeClass. Pure.
 */
export function staticPodSettings(
  view: KubeletView,
  inside: RunningKubelet["inside"],
): { directory: string; maxPods: number } | undefined {
  const directory = settingOf(view, { flag: "pod-manifest-path", field: "staticPodPath" });
  // One inside a distribution's process has an API server, whatever its command line says.
  const alone =
    inside === "process" && settingOf(view, { flag: "kubeconfig", field: "kubeconfig" }) === undefined;
  if (alone || typeof directory !== "string" || !isAbsolute(directory)) return undefined;
  const maxPods = Number(settingOf(view, { flag: "max-pods", field: "maxPods" }) ?? defaultMaxPods);
  return { directory, maxPods: maxPods > 0 ? maxPods : defaultMaxPods };
}

const prefix = "bulkhead-canary-";

/** Static pods that an installer which was killed has left: files of its record. Pure. */
export const staleStaticPods = ({ entries }: Pick<RecordFile, "entries">): string[] =>
  entries.map(({ path }) => path).filter((path) => basename(path).startsWith(prefix));

const Manifest = z.object({ metadata: z.object({ uid: z.string() }) });

/** Ends those, on the engine behind `socket`. */
export async function endStaleStaticPods(
  { host, ownership, log }: Pick<Installer, "host" | "ownership" | "log">,
  socket: string | undefined,
): Promise<void> {
  for (const path of staleStaticPods(ownership.record)) {
    const remove = (): Promise<void> => ownership.restore(path);
    try {
      const { metadata } = Manifest.parse(JSON.parse(await readFile(host.at(path), "utf8")));
      if (socket === undefined) throw new Error("the kubelet's engine was not found");
      using cri = connectCri(host.at(host.real(socket)));
      await endStaticCanary(cri, { remove }, { uid: metadata.uid, refused: false, removeSeconds: 60 });
    } catch (error) {
      log.warn({ path, err: messageOf(error) }, "a canary of a former life is left to the kubelet");
      await remove();
    }
  }
}

/**
 * Why a pod does not run, by the kubelet's log: the last of its syncs that failed, in klog's form:
 * `"Error syncing pod, skipping" err="…" pod="…" podUID="…"`. One may fail and the next not, as while the network comes
 * up: undefined before two did. Pure.
 */
export function troubleIn(log: string, uid: string): string | undefined {
  const lines = log
    .split("\n")
    .filter((line) => line.includes('"Error syncing pod') && line.includes(uid))
    .filter((line) => !line.includes("network is not ready"));
  if (lines.length < 2) return undefined;
  const quoted = /\berr=("(?:[^"\\]|\\.)*")/.exec(lines.at(-1) ?? "")?.[1];
  if (quoted === undefined) return undefined;
  try {
    return String(JSON.parse(quoted)).slice(0, 1024);
  } catch {
    return quoted.slice(0, 1024);
  }
}

/** The static pods of this node's kubelet for the canary of one handler; undefined where it takes none. */
export async function staticPodsOf(
  { host, ownership, log }: Pick<Installer, "host" | "ownership" | "log">,
  handler: string,
  signal: AbortSignal,
): Promise<StaticPods | undefined> {
  const kubelet = await findKubelet();
  if (kubelet === undefined) return undefined;
  const settings = staticPodSettings(await kubeletView(host, kubelet, signal), kubelet.inside);
  if (settings === undefined) return undefined;
  const directory = host.real(settings.directory);
  // It may be a single file, too.
  if ((await lstat(host.at(directory)).catch(() => undefined))?.isDirectory() !== true) return undefined;
  const path = join(directory, `${prefix}${handler}.json`);
  const begun = Math.floor(Date.now() / 1000);
  return {
    maxPods: settings.maxPods,
    put: (pod) => ownership.write(path, `${JSON.stringify(pod)}\n`, { mode: 0o600 }),
    remove: () => ownership.restore(path),
    trouble: async (uid, each) => {
      const argv = [
        "journalctl",
        "-u",
        kubelet.unit,
        "--since",
        `@${begun}`,
        "-n",
        "1000",
        "-o",
        "cat",
        "--no-pager",
      ];
      try {
        return troubleIn((await host.run(argv, { signal: each, timeoutMs: 10_000 })).stdout, uid);
      } catch (error) {
        each.throwIfAborted();
        log.debug({ err: messageOf(error) }, "cannot read the kubelet's log");
        return undefined;
      }
    },
  };
}
