import type { SELinuxOption } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** What a part of a label is when nobody says (container-selinux' own default). */
const usual = { user: "system_u", role: "system_r", type: "container_t", level: "s0" } as const;
const part = /^[A-Za-z0-9_.]+$/;
const range = /^[A-Za-z0-9_.,:-]+$/;

/** The labels of a container's process and of its mounts; undefined when none was asked for. */
export const selinuxLabels = (
  option: SELinuxOption | undefined,
): { process: string; mount: string } | undefined => {
  if (!option || (option.user === "" && option.role === "" && option.type === "" && option.level === ""))
    return undefined;
  const { user, role, type, level } = {
    user: option.user || usual.user,
    role: option.role || usual.role,
    type: option.type || usual.type,
    level: option.level || usual.level,
  };
  for (const [name, value, pattern] of [
    ["user", user, part],
    ["role", role, part],
    ["type", type, part],
    ["level", level, range],
  ] as const)
    if (!pattern.test(value))
      throw new RuntimeError("invalid-argument", `Cannot use SELinux ${name} "${value}": bad characters`);
  return {
    process: [user, role, type, level].join(":"),
    mount: ["system_u", "object_r", "container_file_t", level].join(":"),
  };
};
