/**
 * Images by the distribution and image specifications. The store keeps blobs by digest and names as refs; layers
 * become snapshots through the snapshotter. All methods are safe to call concurrently; a pull of what another
 * pull already fetches waits for that one.
 */
export interface Images {
  /** Pulls and unpacks. Returns the image; resolves only when it can be run. */
  pull(request: PullRequest, signal: AbortSignal): Promise<Image>;
  /** By ID (sha256:… or a unique prefix of at least 12 hex digits), tag or digest reference. undefined when not there. */
  get(ref: string): Image | undefined;
  list(): Image[];
  /** Removes the image with all its names. Succeeds when it is not there. */
  remove(ref: string, signal: AbortSignal): Promise<void>;
  fsInfo(): Promise<FsInfo>;
}

export type PullRequest = {
  /** As the user wrote it; untagged means :latest. */
  ref: string;
  auth?: {
    username?: string;
    password?: string;
    /** base64 of user:password. */
    auth?: string;
    serverAddress?: string;
    identityToken?: string;
    registryToken?: string;
  };
};

export type Image = {
  /** Digest of the image configuration, sha256:…: the one image ID used everywhere. */
  id: string;
  /** name:tag, as pulled. */
  repoTags: string[];
  /** name@sha256:…. */
  repoDigests: string[];
  /** Bytes of compressed layers and configuration. */
  size: number;
  /** USER of the configuration, parsed: numeric uid, or a name to look up in the root file system. */
  user: { uid?: number; username: string };
  pinned: boolean;
  /** An OCI artifact: files for an image volume, nothing that a container could run from. */
  isArtifact?: boolean;
  /** A checkpoint of a container: files to restore one from, nothing that a container could run from. */
  isCheckpoint?: boolean;
  /** Chain of layer snapshots, lowest first: the parents for {@link import("../snapshot/snapshotter.ts").Snapshotter.prepare}. */
  layers: string[];
  config: ImageConfig;
};

/** What the runtime uses of the image configuration (image-spec config.md); hostile, already validated. */
export type ImageConfig = {
  user: string;
  env: string[];
  entrypoint: string[];
  cmd: string[];
  workingDir: string;
  stopSignal: string;
  volumes: string[];
  labels: Record<string, string>;
};

export type FsInfo = { usedBytes: bigint; inodesUsed: bigint };
