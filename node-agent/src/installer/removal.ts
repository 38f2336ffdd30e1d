import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { executorsOf, type Installer } from "./context.ts";
import { type Facts, planNodeRemoval, planRemoval } from "./plan.ts";
import { listPods } from "./pods.ts";
import type { Profiles } from "./profiles.ts";
import { execute } from "./steps.ts";

/** Takes away the handlers of profiles that are wanted no more, once their pods are gone. */
export async function removeOthers(
  installer: Installer,
  profiles: Profiles,
  desired: readonly DesiredProfile[],
  facts: Facts,
  signal: AbortSignal,
): Promise<void> {
  const { host, ownership, ledger, log } = installer;
  // A profile that went over to another engine goes from the first one like one that is wanted no more.
  const stays = desired.filter(({ name, engine }) => {
    const good = ownership.record.profiles[name];
    return good === undefined || (good.handler === undefined) === (engine === "bulkhead");
  });
  const wanted = new Set(stays.map(({ name }) => name));
  const known = new Set([...Object.keys(ownership.record.profiles), ...ledger.states.keys()]);
  for (const name of known) {
    if (wanted.has(name)) continue;
    const good = ownership.record.profiles[name];
    const state = ledger.states.get(name);
    const onNode = good?.handler !== undefined;
    if (good !== undefined && (facts.unitActive || onNode)) {
      const pods = (await listPods(host, facts, signal)).get(name) ?? [];
      const running = pods.map((pod) => `${pod.namespace}/${pod.name}`);
      ledger.apply(name, { on: "removing", pods: running });
      if (running.length > 0) {
        profiles.lookAgain(name);
        continue;
      }
      const files = Object.keys(good.files);
      const steps = (onNode ? planNodeRemoval : planRemoval)(facts, name, files);
      await execute(steps, executorsOf(installer, name), signal, log);
    }
    if (good !== undefined)
      await ownership.update(({ profiles: { [name]: _, ...rest } }) => ({ profiles: rest }));
    ledger.forget(name);
    profiles.forget(name);
    if (state !== undefined)
      ledger.note("Removed", `Profile "${name}" is gone from this node`, "Normal", name);
    const again = desired.find((profile) => profile.name === name);
    if (again !== undefined) ledger.apply(name, { on: "wanted", revision: again.revision });
    ledger.publish();
  }
}
