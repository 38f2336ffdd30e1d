import { create } from "@bufbuild/protobuf";
import { ImageStatusResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import type { ImageMethods, Runtime } from "../runtime.ts";
import { imageMessage } from "./messages.ts";

/** ImageStatus: an empty answer for an image that is not there. */
export const imageStatus =
  (runtime: Pick<Runtime, "images">): ImageMethods["imageStatus"] =>
  async (request) => {
    const image = runtime.images.get(request.image?.image ?? "");
    if (image === undefined) return create(ImageStatusResponseSchema);
    return create(ImageStatusResponseSchema, {
      image: imageMessage(image),
      info: request.verbose
        ? { info: JSON.stringify({ chainIDs: image.layers, imageSpec: { config: image.config } }) }
        : {},
    });
  };
