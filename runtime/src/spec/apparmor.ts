import {
  type LinuxContainerSecurityContext,
  SecurityProfile_ProfileType as ProfileType,
} from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

export type ApparmorChoice = { use: "none" } | { use: "default" } | { use: "profile"; name: string };

/** The AppArmor profile that a container asks for; who says nothing gets the default, and a privileged one none. */
export const apparmorChoice = (security: LinuxContainerSecurityContext | undefined): ApparmorChoice => {
  if (security?.privileged) return { use: "none" };
  // What kubelets before 1.30 sent.
  const older = security?.apparmorProfile ?? "";
  const { profileType, localhostRef } = security?.apparmor ?? {
    profileType:
      older === "unconfined"
        ? ProfileType.Unconfined
        : older === "" || older === "runtime/default"
          ? ProfileType.RuntimeDefault
          : ProfileType.Localhost,
    localhostRef: older,
  };
  const name = localhostRef.replace(/^localhost\//, "");
  switch (profileType) {
    case ProfileType.RuntimeDefault:
      return { use: "default" };
    case ProfileType.Unconfined:
      return { use: "none" };
    case ProfileType.Localhost:
      if (name === "")
        throw new RuntimeError(
          "invalid-argument",
          "Cannot use an AppArmor profile of the node without its name",
        );
      return name === "unconfined" ? { use: "none" } : { use: "profile", name };
    default:
      throw new RuntimeError("invalid-argument", `Cannot use AppArmor profile type ${profileType}`);
  }
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
