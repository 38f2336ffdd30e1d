import { create } from "@bufbuild/protobuf";
import { ImageFsInfoResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { type ImageMethods, now, type Runtime } from "../runtime.ts";

/**
 * ImageFsInfo: what images take, and what containers have written. They are named apart only where they are on two
 * file systems, for kubelet takes two mount points for two disks and collects garbage on each.
 */
export const imageFsInfo =
  (runtime: Pick<Runtime, "images" | "snapshotter">): ImageMethods["imageFsInfo"] =>
  async () => {
    const [images, containers] = await Promise.all([
      runtime.images.fsInfo(),
      runtime.snapshotter.containersUsage(),
    ]);
    const { disks } = runtime.snapshotter;
    const usage = (mountpoint: string, usedBytes: bigint, inodesUsed: bigint) => ({
      timestamp: now(),
      fsId: { mountpoint },
      usedBytes: { value: usedBytes },
      inodesUsed: { value: inodesUsed },
    });
    return create(ImageFsInfoResponseSchema, {
      imageFilesystems: [usage(disks.layers, images.usedBytes, images.inodesUsed)],
      containerFilesystems: [usage(disks.containers, containers.bytes, containers.inodes)],
    });
  };
