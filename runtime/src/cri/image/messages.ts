import { create } from "@bufbuild/protobuf";
import { ImageSchema, type Image as Message } from "@bulkhead/lib/gen/cri_pb.js";
import type { Image } from "../../image/images.ts";

/** An image as CRI shows it. A USER that is a name has no uid. */
export const imageMessage = (image: Image): Message =>
  create(ImageSchema, {
    id: image.id,
    repoTags: image.repoTags,
    repoDigests: image.repoDigests,
    size: BigInt(image.size),
    ...(image.user.uid === undefined
      ? { username: image.user.username }
      : { uid: { value: BigInt(image.user.uid) } }),
    spec: { image: image.id },
    pinned: image.pinned,
  });
