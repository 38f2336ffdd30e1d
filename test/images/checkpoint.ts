import { pushImage } from "./build.ts";
import { imageOf, mediaTypes } from "./image.ts";
import { blobOf, digestOf } from "./push.ts";

/** Pushes a checkpoint archive as an image, as `buildah add` and an annotation make one. `url` is the registry's. */
export const pushCheckpoint = async (
  url: string,
  name: string,
  archive: Buffer,
  annotations: Record<string, string>,
): Promise<void> => {
  const layer = { diffId: digestOf(archive), blob: blobOf(mediaTypes.tar, archive) };
  await pushImage(url, { names: [name], layers: [layer], ...imageOf([layer], {}, annotations) });
};
