import type { SecurityProfile } from "@bulkhead/lib/gen/cri_pb.js";
import { SecurityProfile_ProfileType } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** Which seccomp profile a container gets: none, ours, or a file of the node's. */
export type SeccompChoice = { use: "unconfined" } | { use: "default" } | { use: "file"; path: string };

/** No profile at all means unconfined (CRI), as does privileged. `older` is the field that kubelets before 1.19 sent. */
export const seccompChoice = (
  profile: SecurityProfile | undefined,
  older: string,
  privileged: boolean,
): SeccompChoice => {
  if (privileged) return { use: "unconfined" };
  if (!profile) return fromOlder(older);
  switch (profile.profileType) {
    case SecurityProfile_ProfileType.RuntimeDefault:
      return { use: "default" };
    case SecurityProfile_ProfileType.Unconfined:
      return { use: "unconfined" };
    case SecurityProfile_ProfileType.Localhost:
      return file(profile.localhostRef);
  }
};

const fromOlder = (text: string): SeccompChoice => {
  if (text === "" || text === "unconfined") return { use: "unconfined" };
  if (text === "runtime/default" || text === "docker/default") return { use: "default" };
  return file(text);
};

const file = (ref: string): SeccompChoice => {
  const path = ref.replace(/^localhost\//, "");
  if (!path.startsWith("/") || path.includes("\0"))
    throw new RuntimeError("invalid-argument", `Cannot use seccomp profile "${ref}": not an absolute path`);
  return { use: "file", path };
};
