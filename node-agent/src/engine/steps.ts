import { connectCri } from "@bulkhead/lib/cri/client.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { must } from "../installer/host.ts";
import type { Executors, StepContext } from "../installer/steps.ts";
import { poll, refuseCrashLoop, withLog } from "../installer/wait.ts";
import { adapters } from "./adapters.ts";
import { tookUp } from "./asked.ts";
import { takeBack } from "./edits.ts";
import { offered } from "./offered.ts";

type Own = "record-engine" | "edit" | "take-back" | "check-engine" | "reload-engine" | "await-engine";

/** How the steps that change the node's own engine are done. */
export function engineExecutors({ host, ownership, note }: StepContext): Pick<Executors, Own> {
  const restart = async (unit: string, why: string | undefined, signal: AbortSignal): Promise<void> => {
    // systemd refuses to start what failed too often, until it is told to forget that.
    await host.run(["systemctl", "reset-failed", unit], { signal });
    await must(
      host.run(["systemctl", "restart", unit], { signal, timeoutMs: 150_000 }),
      `Cannot restart ${unit}`,
    );
    const reason = why === undefined ? "" : `; ${why}`;
    note("EngineRestarted", `${unit} was restarted with new handlers; its containers run on${reason}`);
  };
  return {
    "record-engine": ({ record }) => ownership.update(() => ({ engine: record })),
    edit: ({ path, body, base }) => ownership.write(path, body, { base }),
    "take-back": ({ path, edit }) => ownership.restore(path, (today) => takeBack(edit, today)),
    "check-engine": async ({ kind, argv, handlers }, signal) => {
      const output = await must(
        host.run(argv, { signal, timeoutMs: 20_000 }),
        `The engine refuses its new configuration ("${argv.join(" ")}")`,
      );
      // dockerd only says whether it is valid.
      if (kind === "docker") return;
      const shown = adapters[kind].shown(output);
      const missing = handlers.filter((name) => !shown.includes(name));
      if (missing.length > 0) {
        throw new RuntimeError(
          "failed-precondition",
          `"${argv.join(" ")}" does not show ${missing.map((name) => `"${name}"`).join(", ")}: another file of the engine's hides what was written`,
        );
      }
    },
    "reload-engine": async ({ reload }, signal) => {
      const { unit } = reload;
      switch (reload.by) {
        case "itself":
          return;
        case "hup": {
          const { pid, asked } = reload;
          const hup = async (): Promise<void> => {
            await must(host.run(["kill", "-HUP", String(pid)], { signal }), `Cannot send SIGHUP to ${unit}`);
          };
          if (asked === undefined) {
            await hup();
            note("EngineReloaded", `${unit} was told to read its configuration again`);
            return;
          }
          using cri = connectCri(host.at(host.real(asked.socket)));
          const why = await tookUp(cri, asked, hup, signal);
          if (why === undefined) {
            note("EngineReloaded", `${unit} read its configuration again and starts pods by it`);
            return;
          }
          if (asked.stays !== undefined)
            throw new RuntimeError(
              "failed-precondition",
              `${unit} was sent SIGHUP, and ${why}. ${asked.stays}`,
            );
          await restart(unit, `it was sent SIGHUP, and ${why}`, signal);
          return;
        }
        case "restart":
          await restart(unit, undefined, signal);
      }
    },
    "await-engine": async ({ socket, unit, handlers, restarted }, signal) => {
      using cri = connectCri(host.at(socket));
      try {
        let looked = performance.now();
        // cri-dockerd keeps for a minute what Docker told it, and for another one the handlers that it made of that.
        const patience = restarted ? 120_000 : 180_000;
        await poll(`${unit} did not come to offer its handlers`, patience, signal, async (each) => {
          if (restarted && performance.now() - looked > 2000) {
            looked = performance.now();
            await refuseCrashLoop(host, unit, 3, each);
          }
          const status = await cri.runtime.status({ verbose: true }, each);
          const ready = status.status?.conditions.find(({ type }) => type === "RuntimeReady");
          if (ready?.status !== true)
            throw new RuntimeError("unavailable", ready?.message || "RuntimeReady is false");
          const names = offered(status);
          const missing = handlers.filter((name) => names !== undefined && !names.has(name));
          if (missing.length > 0)
            throw new RuntimeError("unavailable", `it does not offer ${missing.join(", ")}`);
          return true;
        });
      } catch (error) {
        signal.throwIfAborted();
        throw await withLog(host, unit, error);
      }
    },
  };
}
