import type { Logger } from "pino";
import { type Clock, systemClock } from "../std/clock.ts";
import { hasCode, messageOf, RuntimeError } from "../std/errors.ts";
import type { Client } from "./client.ts";
import type { KubeObject, Resource } from "./object.ts";

export type Lease = KubeObject & {
  spec?: {
    holderIdentity?: string;
    leaseDurationSeconds?: number;
    acquireTime?: string;
    renewTime?: string;
    leaseTransitions?: number;
  };
};

export const leases: Resource<Lease> = {
  apiVersion: "coordination.k8s.io/v1",
  kind: "Lease",
  plural: "leases",
  namespaced: true,
};

/** meta/v1 MicroTime. */
export const microTime = (ms: number): string => new Date(ms).toISOString().replace("Z", "000Z");

export type LeaderOptions = {
  client: Pick<Client, "get" | "create" | "replace">;
  namespace: string;
  name: string;
  identity: string;
  log?: Logger;
  clock?: Clock;
  random?: () => number;
  /** Others wait so long after the last renewal that they saw. Defaults 15, 10 and 2 s, as client-go. */
  leaseDurationMs?: number;
  /** The leader that could not renew for so long stops. Shorter than the duration: two never work at once. */
  renewDeadlineMs?: number;
  retryPeriodMs?: number;
  onChange?: (leads: boolean) => void;
  /**
   * Told until when the lease is ours, by `clock`. A process that was stopped or busy past that finds out only once it
   * runs again: what must never be done twice asks for this time before it is done.
   */
  onRenewed?: (until: number) => void;
  /**
   * Whether the process of that identity certainly runs no more: then nobody waits for its lease to run out. One
   * that was killed, or whose rights went before it, cannot give the lease up.
   */
  isGone?: (identity: string, signal: AbortSignal) => Promise<boolean>;
};

/**
 * Waits for the Lease, then runs `work` while holding it; the work's signal aborts when `signal` does or the
 * lease is lost. Returns when `signal` aborted and the work has ended (the lease is then given up at once, so that
 * another can take over); rejects when the lease was lost, so that the process exits and starts anew.
 * Time is measured by when a change was seen here, never by clocks of other machines (as client-go does).
 */
export const runAsLeader = async (
  options: LeaderOptions,
  work: (signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<void> => {
  const { client, namespace, name, identity, log, clock = systemClock, random = Math.random } = options;
  const leaseDurationMs = options.leaseDurationMs ?? 15_000;
  const renewDeadlineMs = options.renewDeadlineMs ?? 10_000;
  const retryPeriodMs = options.retryPeriodMs ?? 2_000;
  let seen: { version: string; at: number } | undefined;
  let renewed = 0;

  /** The lease as we last wrote it: renewing it needs no look at it, as long as nobody else wrote. */
  let own: Lease | undefined;

  const read = async (within: AbortSignal): Promise<Lease | undefined> => {
    try {
      return await client.get(leases, name, { namespace, signal: within });
    } catch (error) {
      if (hasCode(error, "not-found")) return undefined;
      throw error;
    }
  };

  /** One try to take or renew; true when we hold the lease now. */
  const tryOnce = async (within: AbortSignal): Promise<boolean> => {
    const now = clock.now();
    const ours = {
      holderIdentity: identity,
      leaseDurationSeconds: Math.max(1, Math.round(leaseDurationMs / 1000)),
      renewTime: microTime(now),
    };
    const known = own;
    // Whatever comes of this try, the next looks before it writes.
    own = undefined;
    const lease = known ?? (await read(within));
    if (!lease) {
      own = await client.create(
        leases,
        {
          metadata: { name, namespace },
          spec: { ...ours, acquireTime: microTime(now), leaseTransitions: 0 },
        },
        { signal: within },
      );
      return true;
    }
    const version = lease.metadata.resourceVersion ?? "";
    if (seen?.version !== version) seen = { version, at: now };
    const held = lease.spec?.holderIdentity === identity;
    const free = !lease.spec?.holderIdentity;
    const holder = lease.spec?.holderIdentity ?? "";
    if (!held && !free && now - seen.at < (lease.spec?.leaseDurationSeconds ?? 15) * 1000) {
      if ((await options.isGone?.(holder, within)) !== true) return false;
      log?.info({ lease: name, holder }, "holder is gone");
    }
    own = await client.replace(
      leases,
      {
        ...lease,
        spec: {
          ...ours,
          acquireTime: (held && lease.spec?.acquireTime) || microTime(now),
          leaseTransitions: (lease.spec?.leaseTransitions ?? 0) + (held ? 0 : 1),
        },
      },
      { signal: within },
    );
    return true;
  };

  const attempt = async (): Promise<boolean> => {
    const started = clock.now();
    try {
      const holds = await tryOnce(AbortSignal.any([signal, AbortSignal.timeout(renewDeadlineMs / 2)]));
      // By when it was asked for: whoever waits for it to run out saw it written later.
      if (holds) options.onRenewed?.(started + renewDeadlineMs);
      if (holds) renewed = started;
      return holds;
    } catch (error) {
      const told = { lease: name, err: messageOf(error) };
      if (!signal.aborted && renewed > 0) log?.warn(told, "lease not renewed");
      else if (!signal.aborted) log?.debug(told, "lease not taken");
      return false;
    }
  };

  /** Until the next try is due: one that took long is followed at once. */
  const rest = async (until: AbortSignal, since: number) =>
    clock.sleep(Math.max(0, since + retryPeriodMs * (1 + 0.2 * random()) - clock.now()), until);
  try {
    for (let started = clock.now(); !(await attempt()); started = clock.now()) await rest(signal, started);
  } catch (error) {
    if (signal.aborted) return;
    throw error;
  }
  if (signal.aborted) return;
  log?.info({ lease: name, identity }, "leader");
  options.onChange?.(true);

  const lost = new AbortController();
  const ended = new AbortController();
  const inner = AbortSignal.any([signal, lost.signal]);
  const over = AbortSignal.any([signal, ended.signal, lost.signal]);
  const unlessOver = (error: unknown) => {
    if (!over.aborted) lost.abort(error);
  };
  const renewing = (async () => {
    for (let started = clock.now(); !over.aborted; ) {
      await rest(over, started);
      started = clock.now();
      await attempt();
    }
  })().catch(unlessOver);
  // Beside the attempts, which may hang: at the deadline the work ends, whatever they do.
  const guarding = (async () => {
    const left = () => renewed + renewDeadlineMs - clock.now();
    while (left() > 0) await clock.sleep(left(), over);
    lost.abort(new RuntimeError("failed-precondition", `Cannot renew lease "${namespace}/${name}": lost it`));
  })().catch(unlessOver);

  try {
    await work(inner);
  } finally {
    ended.abort();
    options.onChange?.(false);
  }
  lost.signal.throwIfAborted();
  if (!signal.aborted) {
    throw new RuntimeError("internal", "Cannot go on leading: the work ended by itself");
  }
  await Promise.all([renewing, guarding]);
  await release(options).catch((error: unknown) =>
    log?.warn({ lease: name, err: messageOf(error) }, "lease not released; it runs out by itself"),
  );
  log?.info({ lease: name }, "lease released");
};

/** Gives the lease up, if it is ours, so that a standby need not wait for it to run out. */
const release = async ({ client, namespace, name, identity, clock = systemClock }: LeaderOptions) => {
  const signal = AbortSignal.timeout(5_000);
  const lease = await client.get(leases, name, { namespace, signal });
  if (lease.spec?.holderIdentity !== identity) return;
  await client.replace(
    leases,
    {
      ...lease,
      spec: {
        ...lease.spec,
        holderIdentity: "",
        leaseDurationSeconds: 1,
        renewTime: microTime(clock.now()),
      },
    },
    { signal },
  );
};
