import { createHash } from "node:crypto";
import type { Logger } from "pino";
import { type Clock, systemClock } from "../std/clock.ts";
import { messageOf } from "../std/errors.ts";
import type { Client } from "./client.ts";
import { microTime } from "./lease.ts";
import type { KubeObject, Resource } from "./object.ts";

type ObjectReference = { apiVersion: string; kind: string; name: string; namespace?: string; uid?: string };

/** events.k8s.io/v1 Event. */
export type KubeEvent = KubeObject & {
  eventTime: string;
  reportingController: string;
  reportingInstance: string;
  action: string;
  reason: string;
  regarding: ObjectReference;
  note: string;
  type: "Normal" | "Warning";
  series?: { count: number; lastObservedTime: string };
};

export const events: Resource<KubeEvent> = {
  apiVersion: "events.k8s.io/v1",
  kind: "Event",
  plural: "events",
  namespaced: true,
};

export type EventInput = {
  regarding: ObjectReference;
  type: "Normal" | "Warning";
  /** CamelCase: why. */
  reason: string;
  /** CamelCase: what was done or tried. */
  action: string;
  note: string;
};

export type EventRecorder = {
  /** Records the event in the background; equal ones within six minutes become one with a count. */
  emit(event: EventInput): void;
  /** Waits for what was emitted. */
  flush(): Promise<void>;
};

const seriesMs = 6 * 60_000;
const maxSeries = 1000;
/**
 * New events per object and reason: a burst, then one more each minute. By reason, because a NodeRuntime speaks for
 * every profile of a node: what is told often there must not silence what is told once.
 */
const burst = 25;
const refillMs = 60_000;

/** A recorder of Events (events.k8s.io/v1). Events inform people; a failure to write one is logged, no more. */
export const createRecorder = (options: {
  client: Pick<Client, "create" | "patch">;
  controller: string;
  instance: string;
  log?: Logger;
  clock?: Clock;
}): EventRecorder => {
  const { client, controller, instance, log, clock = systemClock } = options;
  const series = new Map<string, { name: string; namespace: string; count: number; at: number }>();
  const budgets = new Map<string, { left: number; at: number }>();
  let writing: Promise<void> = Promise.resolve();
  let pending = 0;

  const allowed = (subject: string, now: number): boolean => {
    const budget = budgets.get(subject) ?? { left: burst, at: now };
    // A clock that was set back takes nothing away.
    const left = Math.min(burst, budget.left + Math.max(0, now - budget.at) / refillMs);
    budgets.delete(subject);
    budgets.set(subject, { left: left >= 1 ? left - 1 : left, at: now });
    if (budgets.size > maxSeries) budgets.delete(budgets.keys().next().value!);
    return left >= 1;
  };

  const write = async (input: EventInput) => {
    const now = clock.now();
    const { regarding } = input;
    const note = input.note.slice(0, 1024);
    // The name makes the same event of another process the same object's neighbour, not its twin.
    const key = JSON.stringify([regarding, input.type, input.reason, input.action, note]);
    const known = series.get(key);
    const signal = AbortSignal.timeout(10_000);
    if (known && now - known.at < seriesMs) {
      known.count++;
      known.at = now;
      try {
        await client.patch(
          events,
          known.name,
          { series: { count: known.count, lastObservedTime: microTime(now) } },
          { namespace: known.namespace, signal },
        );
        return;
      } catch {
        series.delete(key); // gone by its time to live: begin anew
      }
    }
    if (!allowed(JSON.stringify([regarding, input.reason]), now)) {
      log?.info({ reason: input.reason, note }, "event held back: too many of its reason");
      return;
    }
    const namespace = regarding.namespace ?? "default";
    const suffix = createHash("sha256").update(`${key}${instance}${now}`).digest("hex").slice(0, 16);
    const name = `${regarding.name.slice(0, 200)}.${suffix}`;
    await client.create(
      events,
      {
        metadata: { name, namespace },
        eventTime: microTime(now),
        reportingController: controller,
        reportingInstance: instance.slice(0, 128),
        action: input.action,
        reason: input.reason,
        regarding,
        note,
        type: input.type,
      },
      { signal },
    );
    series.set(key, { name, namespace, count: 1, at: now });
    if (series.size > maxSeries) series.delete(series.keys().next().value!);
  };

  return {
    emit: (event) => {
      // An API server that is down must not make us collect events for ever.
      if (pending >= maxSeries) return;
      pending++;
      writing = writing
        .then(() => write(event))
        .catch((error: unknown) =>
          log?.warn({ reason: event.reason, err: messageOf(error) }, "event not written"),
        )
        .finally(() => {
          pending--;
        });
    },
    flush: () => writing,
  };
};
