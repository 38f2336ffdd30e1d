import { create } from "@bufbuild/protobuf";
import { RemoveImageResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { ImageMethods, Runtime } from "../runtime.ts";

/** RemoveImage: with all its names. Succeeds for an image that is gone. */
export const removeImage =
  (runtime: Pick<Runtime, "images">): ImageMethods["removeImage"] =>
  async (request, signal) => {
    const ref = request.image?.image ?? "";
    if (ref === "") throw new RuntimeError("invalid-argument", "Cannot remove an image without a name");
    await runtime.images.remove(ref, signal);
    return create(RemoveImageResponseSchema);
  };
