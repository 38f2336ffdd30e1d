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

/** The Lease, in Bulkhead's namespace, of the operator that works; the chart's roles name it, too. */
export const operatorLease = "bulkhead-operator";

/** A time as both clocks tell it. */
type Moment = { wall: number; steady: number };

/** meta/v1 MicroTime. */
export const microTime = (ms: number): string => new Date(ms).toISOString().replace("Z", "000Z");

export type LeaderOptions = {
  client: Pick<Client, "get" | "create" | "replace">;
  namespace: string;
  name: string;
  identity: string;
  log?: Logger;
  clock?: Clock;
  /** Milliseconds by a clock that nobody sets; the process' own when left out. */
  steady?: () => number;
  random?: () => number;
  /** Others wait so long after the last renewal that they saw. Defaults 15, 10 and 2 s, as client-go. */
  leaseDurationMs?: number;
  /** The leader that could not renew for so long stops. Shorter than the duration: two never work at once. */
  renewDeadlineMs?: number;
  retryPeriodMs?: number;
  onChange?: (leads: boolean) => void;
  /**
   * Told what says whether the lease is ours still. A process that was stopped or busy past that finds out only once it
   * runs again: what must never be done twice asks before it is done.
   */
  onRenewed?: (isOurs: () => boolean) => void;
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
 * Time is measured by when a change was seen here, never by clocks of other machines (as client-go does), and by two
 * clocks: the wall's, which somebody may set, and a steady one, which stands still while the machine is suspended. Who
 * holds the lease believes the one that says that more has passed, who waits for it the other.
 */
export const runAsLeader = async (
  options: LeaderOptions,
  work: (signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<void> => {
  const { client, namespace, name, identity, log, clock = systemClock, random = Math.random } = options;
  const { steady = () => performance.now() } = options;
  const leaseDurationMs = options.leaseDurationMs ?? 15_000;
  const renewDeadlineMs = options.renewDeadlineMs ?? 10_000;
  const retryPeriodMs = options.retryPeriodMs ?? 2_000;
  const present = (): Moment => ({ wall: clock.now(), steady: steady() });
  /** Milliseconds since then by either clock. */
  const since = (then: Moment): number[] => [clock.now() - then.wall, steady() - then.steady];
  let seen: { version: string; at: Moment } | undefined;
  let renewed: Moment | undefined;
  /** How long the lease is ours still. */
  const left = () => (renewed ? renewDeadlineMs - Math.max(...since(renewed)) : 0);

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
    if (seen?.version !== version) seen = { version, at: present() };
    const held = lease.spec?.holderIdentity === identity;
    const free = !lease.spec?.holderIdentity;
    const holder = lease.spec?.holderIdentity ?? "";
    if (!held && !free && Math.min(...since(seen.at)) < (lease.spec?.leaseDurationSeconds ?? 15) * 1000) {
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
    const started = present();
    try {
      const holds = await tryOnce(AbortSignal.any([signal, AbortSignal.timeout(renewDeadlineMs / 2)]));
      // By when it was asked for: whoever waits for it to run out saw it written later.
      if (holds) renewed = started;
      if (holds) options.onRenewed?.(() => left() > 0);
      return holds;
    } catch (error) {
      const told = { lease: name, err: messageOf(error) };
      if (!signal.aborted && renewed) log?.warn(told, "lease not renewed");
      else if (!signal.aborted) log?.debug(told, "lease not taken");
      return false;
    }
  };

  /** Until the next try is due: one that took long is followed at once. */
  const rest = async (until: AbortSignal, started: number) =>
    clock.sleep(Math.max(0, started + retryPeriodMs * (1 + 0.2 * random()) - steady()), until);
  try {
    for (let started = steady(); !(await attempt()); started = steady()) await rest(signal, started);
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
    for (let started = steady(); !over.aborted; ) {
      await rest(over, started);
      started = steady();
      await attempt();
    }
  })().catch(unlessOver);
  // Beside the attempts, which may hang: at the deadline the work ends, whatever they do.
  const guarding = (async () => {
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
