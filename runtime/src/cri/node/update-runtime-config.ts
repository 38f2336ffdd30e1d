import { create } from "@bufbuild/protobuf";
import { UpdateRuntimeConfigResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import type { RuntimeMethods } from "../runtime.ts";

/** UpdateRuntimeConfig tells the node's pod CIDR, for engines that write CNI configurations. We write none. */
export const updateRuntimeConfig = (): RuntimeMethods["updateRuntimeConfig"] => async () =>
  create(UpdateRuntimeConfigResponseSchema);
