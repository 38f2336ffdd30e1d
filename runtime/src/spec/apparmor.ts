import type { LinuxContainerSecurityContext } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** The node's AppArmor profile that a container asks for; undefined: none, or the default, which is none here. */
export const apparmorOf = (security: LinuxContainerSecurityContext | undefined): string | undefined => {
  if (security?.privileged) return undefined;
  if (security?.apparmor) return security.apparmor.localhostRef.replace(/^localhost\//, "") || undefined;
  // What kubelets before 1.30 sent.
  const older = security?.apparmorProfile ?? "";
  return older.startsWith("localhost/") ? older.slice("localhost/".length) : undefined;
};

/**
 * Refuses a profile that the node does not have: a container must not run without the wall that it asked for.
 * `loaded` is /sys/kernel/security/apparmor/profiles, lines of `name (mode)`; undefined where it cannot be read.
 */
export const requireApparmor = (profile: string, enabled: boolean, loaded: string | undefined): void => {
  if (!enabled)
    throw new RuntimeError(
      "failed-precondition",
      `Cannot use AppArmor profile "${profile}": AppArmor is not enabled on this node`,
    );
  if (loaded === undefined) return;
  const names = loaded.split("\n").map((line) => line.replace(/ \([a-z]+\)$/, ""));
  if (!names.includes(profile))
    throw new RuntimeError(
      "failed-precondition",
      `Cannot use AppArmor profile "${profile}": it is not loaded on this node`,
    );
};
