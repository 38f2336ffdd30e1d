import { create } from "@bufbuild/protobuf";
import { ListImagesResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import type { ImageMethods, Runtime } from "../runtime.ts";
import { imageMessage } from "./messages.ts";

/** ListImages; a filter names one image by whatever name it has. */
export const listImages =
  (runtime: Pick<Runtime, "images">): ImageMethods["listImages"] =>
  async ({ filter }) => {
    const wanted = filter?.image?.image ?? "";
    const one = wanted === "" ? undefined : runtime.images.get(wanted);
    const images = wanted === "" ? runtime.images.list() : one ? [one] : [];
    return create(ListImagesResponseSchema, { images: images.map(imageMessage) });
  };
