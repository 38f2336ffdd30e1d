import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { vmSettings } from "@bulkhead/lib/api/kata.ts";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { connectCri } from "@bulkhead/lib/cri/client.ts";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { span } from "@bulkhead/lib/tracing/span.ts";
import { type CanaryDeadlines, type Elsewhere, runCanary, runSeenCanary } from "../probe/canary.ts";
import { judge } from "../probe/wall.ts";
import type { Installer } from "./context.ts";
import { wallOf } from "./files.ts";
import type { Canary } from "./state.ts";
import type { NotWanted, Overtaken } from "./wanted.ts";

/** A canary that did not pass, with what it had seen. */
export class ProbeError extends Error {
  readonly canary: Canary;
  constructor(message: string, canary: Canary) {
    super(message);
    this.name = "ProbeError";
    this.canary = canary;
  }
}

const probeDeadlineMs = 120_000;

/** A canary under emulation takes what its profile says that a guest may take, and a container in it. */
const probeDeadlineOf = ({ handler }: DesiredProfile): number => {
  if (handler.shim) {
    const { create, start } = handler.shim.deadlines;
    return probeDeadlineMs + (2 * create + start) * 1000;
  }
  const vm = vmSettings(handler);
  return probeDeadlineMs + (vm ? (vm.deadlines.boot + 2 * vm.deadlines.createContainer) * 1000 : 0);
};

/** A guest that may take long to make a container may take as long for a command in it; it stops, and is removed. */
const canaryDeadlinesOf = ({ handler }: DesiredProfile): CanaryDeadlines | undefined => {
  const vm = vmSettings(handler);
  const exec = vm?.deadlines.createContainer ?? handler.shim?.deadlines.start;
  const stop = vm?.deadlines.stop ?? handler.shim?.deadlines.stop;
  if (exec === undefined || stop === undefined) return undefined;
  return { exec: Math.max(30, exec), remove: 30 + 2 * stop };
};

/**
 * One canary of a profile, and a second one before a handler that served well is called broken. On our runtime, or on
 * the engine behind `at`. Throws a {@link ProbeError} when it fails, {@link NotWanted} or
 * {@link Overtaken} when it need not be known any more, or not now.
 */
export async function prove(
  { host, hostFacts, metrics, walls, wanted, log }: Installer,
  profile: DesiredProfile,
  stop: AbortSignal,
  at?: { socket: string } & Elsewhere,
): Promise<Canary> {
  const { name } = profile;
  const signal = AbortSignal.any([stop, wanted.signalOf(profile)]);
  const attempt = async (): Promise<Canary> => {
    using cri = connectCri(host.at(at === undefined ? paths.socket : host.real(at.socket)));
    const begun = new Date().toISOString();
    const failed = (message: string, rest: Partial<Canary> = {}): ProbeError =>
      new ProbeError(message, {
        passed: false,
        at: begun,
        startSeconds: 0,
        kernel: "",
        assertions: [],
        failures: metrics.failures(name) + 1,
        ...rest,
      });
    const deadlines = canaryDeadlinesOf(profile);
    const directory = `/run/bulkhead-canary-${name}`;
    const logs = { node: directory, here: host.at(directory) };
    const soon = AbortSignal.any([signal, AbortSignal.timeout(probeDeadlineOf(profile))]);
    const result = await (at === undefined
      ? runCanary(cri, name, soon, { logs, deadlines, volume: join(paths.state, "canary") })
      : runSeenCanary(cri, name, soon, {
          logs,
          deadlines,
          elsewhere: at,
          tryMs: probeDeadlineOf(profile) / 6,
        })
    ).catch((error: unknown) => {
      signal.throwIfAborted();
      throw failed(`The canary of "${name}" failed: ${messageOf(error)}`);
    });
    const { wall, mark } = wallOf(profile, walls.chosen(profile));
    const verdict = judge(wall, result.view, hostFacts.view, mark, result.outside);
    const seen = {
      startSeconds: Math.round(result.startSeconds * 1000) / 1000,
      kernel: result.view.release.slice(0, 256),
      overheadBytes: result.outside.overheadBytes,
      assertions: verdict.assertions,
    };
    if (profile.probe.assertIsolation && verdict.broken.length > 0) {
      throw failed(
        `The canary of "${name}" ran, but its wall is not there: ${verdict.broken.join(", ")}`,
        seen,
      );
    }
    return { passed: true, at: begun, failures: metrics.failures(name), ...seen };
  };
  for (let tries = 1; ; tries++) {
    try {
      const canary = await span(
        "canary",
        { "bulkhead.profile": name, "bulkhead.canary.try": tries },
        attempt,
      );
      metrics.passed(name, canary.startSeconds);
      log.info({ profile: name, seconds: canary.startSeconds, kernel: canary.kernel }, "canary passed");
      return canary;
    } catch (error) {
      signal.throwIfAborted();
      metrics.failed(name);
      log.warn({ profile: name, tries, err: messageOf(error) }, "canary failed");
      if (tries === 2) throw error;
      await sleep(1000, undefined, { signal }).catch(() => signal.throwIfAborted());
    }
  }
}
