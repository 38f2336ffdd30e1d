import { create } from "@bufbuild/protobuf";
import { CgroupDriver, RuntimeConfigResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import type { Runtime, RuntimeMethods } from "../runtime.ts";

/** RuntimeConfig: kubelet takes the cgroup driver from us (KEP-4033). */
export const runtimeConfig =
  (runtime: Pick<Runtime, "host">): RuntimeMethods["runtimeConfig"] =>
  async () =>
    create(RuntimeConfigResponseSchema, {
      linux: {
        cgroupDriver: runtime.host.cgroupDriver === "systemd" ? CgroupDriver.SYSTEMD : CgroupDriver.CGROUPFS,
      },
    });
