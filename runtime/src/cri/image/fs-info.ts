import { create } from "@bufbuild/protobuf";
import { ImageFsInfoResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { type ImageMethods, now, type Runtime } from "../runtime.ts";

/** ImageFsInfo: images and containers are on one file system. */
export const imageFsInfo =
  (runtime: Pick<Runtime, "images">): ImageMethods["imageFsInfo"] =>
  async () => {
    const { mountpoint, usedBytes, inodesUsed } = await runtime.images.fsInfo();
    const usage = {
      timestamp: now(),
      fsId: { mountpoint },
      usedBytes: { value: usedBytes },
      inodesUsed: { value: inodesUsed },
    };
    return create(ImageFsInfoResponseSchema, { imageFilesystems: [usage], containerFilesystems: [usage] });
  };
