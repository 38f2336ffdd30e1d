import { create } from "@bufbuild/protobuf";
import { PullImageResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { ImageMethods, Runtime } from "../runtime.ts";

/** PullImage: returns when the image can be run. The answer is the image's one ID. */
export const pullImage =
  (runtime: Pick<Runtime, "images">): ImageMethods["pullImage"] =>
  async (request, signal) => {
    const ref = request.image?.image ?? "";
    if (ref === "") throw new RuntimeError("invalid-argument", "Cannot pull an image without a name");
    const image = await runtime.images.pull({ ref, ...(request.auth && { auth: request.auth }) }, signal);
    return create(PullImageResponseSchema, { imageRef: image.id });
  };
