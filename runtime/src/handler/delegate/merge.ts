import type {
  FilesystemUsage,
  Image,
  ImageFsInfoResponse,
  RuntimeHandler,
  StatusResponse,
  VersionResponse,
} from "@bulkhead/lib/gen/cri_pb.js";

/**
 * How answers of two runtimes become one (pure). `own` is ours, `engine` is what the node had before.
 */

/** An image that both have is named once, with the names of both; ours comes first. */
export function mergeImages(own: Image[], engine: Image[]): Image[] {
  const byId = new Map(own.map((image) => [image.id, image]));
  for (const image of engine) {
    const known = byId.get(image.id);
    byId.set(
      image.id,
      known
        ? {
            ...known,
            repoTags: union(known.repoTags, image.repoTags),
            repoDigests: union(known.repoDigests, image.repoDigests),
            pinned: known.pinned || image.pinned,
          }
        : image,
    );
  }
  return [...byId.values()];
}

const union = (a: string[], b: string[]): string[] => [...new Set([...a, ...b])];

/** Handlers of both; ours win. The default handler "" is the engine's, for that is who serves it. */
export function mergeHandlers(own: RuntimeHandler[], engine: RuntimeHandler[]): RuntimeHandler[] {
  const byName = new Map(own.map((handler) => [handler.name, handler]));
  for (const handler of engine)
    if (handler.name === "" || !byName.has(handler.name)) byName.set(handler.name, handler);
  return [...byName.values()];
}

/** Our conditions stand: pods of ours run whatever the engine does. Its trouble is told in the info. */
export const mergeStatus = (own: StatusResponse, engine: StatusResponse): StatusResponse => ({
  ...own,
  // A front without a handler of its own still serves the engine's pods: the kubelet keeps its runtime.
  ...(own.status && {
    status: {
      ...own.status,
      conditions: own.status.conditions.map((condition) =>
        condition.type === "RuntimeReady" && !condition.status
          ? (engine.status?.conditions.find(({ type }) => type === condition.type) ?? condition)
          : condition,
      ),
    },
  }),
  runtimeHandlers: mergeHandlers(own.runtimeHandlers, engine.runtimeHandlers),
});

/** kubelet shows this as the node's runtime version. */
export const mergeVersion = (own: VersionResponse, engine: VersionResponse): VersionResponse => ({
  ...own,
  runtimeVersion: `${own.runtimeVersion}+${engine.runtimeName}.${engine.runtimeVersion.replace(/^v/, "").replaceAll("+", ".")}`,
});

/** One entry per disk: kubelet reads the first and believes that it is the whole. */
export function mergeFsInfo(
  own: ImageFsInfoResponse,
  engine: ImageFsInfoResponse,
  sameDisk: boolean,
): ImageFsInfoResponse {
  const merge = (a: FilesystemUsage[], b: FilesystemUsage[]): FilesystemUsage[] => {
    const [first, ...rest] = a;
    const [other] = b;
    if (!first || !other) return [...a, ...b];
    if (!sameDisk) return [first, ...rest, ...b];
    return [{ ...first, ...sum(first, other) }, ...rest];
  };
  return {
    ...own,
    imageFilesystems: merge(own.imageFilesystems, engine.imageFilesystems),
    containerFilesystems: merge(own.containerFilesystems, engine.containerFilesystems),
  };
}

function sum(a: FilesystemUsage, b: FilesystemUsage): Partial<FilesystemUsage> {
  return {
    ...(a.usedBytes && {
      usedBytes: { ...a.usedBytes, value: a.usedBytes.value + (b.usedBytes?.value ?? 0n) },
    }),
    ...(a.inodesUsed && {
      inodesUsed: { ...a.inodesUsed, value: a.inodesUsed.value + (b.inodesUsed?.value ?? 0n) },
    }),
  };
}
