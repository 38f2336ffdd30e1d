import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { canaryNamespace, labels } from "@bulkhead/lib/api/group.ts";
import type { CriClient } from "@bulkhead/lib/cri/client.ts";
import { NamespaceMode } from "@bulkhead/lib/gen/cri_pb.js";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { removeCanaries } from "../probe/canary.ts";
import type { Asked } from "./engine.ts";
import { offered } from "./offered.ts";

/**
 * CRI-O reads its table of runtimes again at SIGHUP and shows what it has read, but may start pods by the table of
 * before (cri-o issue 10202). What it starts them by is told by nothing but a start: it is asked for a pod that it looks
 * the handler up for, and refuses right after that, before anything is made.
 */

/** How long the engine may take in all; and from showing the new table, which it then asks each runtime about. */
const usual = { reloadMs: 15_000, followMs: 5000 };

/**
 * Sends SIGHUP by `hup`. Undefined when pods are started by what the engine read then; otherwise why they are not, as
 * far as it can be told, so that the engine has to be restarted.
 */
export async function tookUp(
  cri: CriClient,
  { comes, goes }: Pick<Asked, "comes" | "goes">,
  hup: () => Promise<void>,
  signal: AbortSignal,
  { reloadMs, followMs } = usual,
): Promise<string | undefined> {
  /** Undefined when pods can have all of `there` and none of `gone`. */
  const wrong = async (there: string[], gone: string[]): Promise<string | undefined> => {
    for (const name of [...there, ...gone]) {
      const knows = await knowsHandler(cri, name, signal);
      if (typeof knows === "string") return `it does not say whether it starts pods by "${name}": ${knows}`;
      if (knows !== there.includes(name))
        return knows ? `it starts pods by an earlier "${name}"` : `it starts no pods by "${name}"`;
    }
    return undefined;
  };
  // An entry that it has already cannot be told from the one that comes for it.
  const older = await wrong([], comes);
  await hup();
  if (older !== undefined) return older;
  const deadline = performance.now() + reloadMs;
  for (let shownAt: number | undefined; ; ) {
    const why = await wrong(comes, goes);
    if (why === undefined) return undefined;
    const shown = await cri.runtime
      .status({ verbose: true }, withDeadline(signal))
      .then(offered, () => undefined);
    const now = performance.now();
    if (
      shown !== undefined &&
      comes.every((name) => shown.has(name)) &&
      !goes.some((name) => shown.has(name))
    )
      shownAt ??= now;
    if (now > deadline || (shownAt !== undefined && now > shownAt + followMs)) return why;
    await sleep(200, undefined, { signal });
  }
}

const withDeadline = (signal: AbortSignal): AbortSignal =>
  AbortSignal.any([signal, AbortSignal.timeout(10_000)]);

/** Whether CRI-O starts pods by a handler of that name; what it said where that is no answer. */
async function knowsHandler(cri: CriClient, handler: string, signal: AbortSignal): Promise<boolean | string> {
  const config = {
    metadata: { name: `canary-${handler}`, namespace: canaryNamespace, uid: randomUUID(), attempt: 0 },
    labels: { [labels.canary]: handler },
    linux: {
      securityContext: {
        namespaceOptions: {
          // It waits for no network.
          network: NamespaceMode.NODE,
          // No user namespace is of this mode: nothing can be made of it.
          usernsOptions: { mode: NamespaceMode.CONTAINER },
        },
      },
    },
  };
  try {
    await cri.runtime.runPodSandbox({ config, runtimeHandler: handler }, withDeadline(signal));
  } catch (error) {
    signal.throwIfAborted();
    const message = messageOf(error);
    if (/failed to find runtime handler/.test(message)) return false;
    return /unsupported pod mode/.test(message) ? true : message;
  }
  await removeCanaries(cri, handler, AbortSignal.timeout(30_000));
  return true;
}
