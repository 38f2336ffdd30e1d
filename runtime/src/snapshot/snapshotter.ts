/**
 * Layers on disk. A *layer* is committed and never changes; its id is the chain ID of the diff IDs up to it
 * (image-spec config.md, "Layer ChainID"). A *container root* is writable and stands on a chain of layers.
 *
 * An import: `extract(chainId, parent, tar)` for each layer from the lowest; then for each container
 * `prepare(key, layers)` → mounts with `mount(key, target)`; afterwards `unmount` and `remove`.
 */
export interface Snapshotter {
  readonly name: string;
  /** Directories on the disks of layers and of writable parts; the same one where they share a disk. */
  readonly disks: { layers: string; containers: string };
  /**
   * Unpacks a layer, which exists only when this resolves. A second call for the same id is a no-op. With `after`
   * the parent may still be on its way: reading does not wait, and the layer is there when the parent is.
   */
  extract(
    id: string,
    parent: string | undefined,
    source: LayerSource,
    signal: AbortSignal,
    after?: Promise<unknown>,
  ): Promise<LayerUsage>;
  has(id: string): boolean;
  /** Layers that are not among `claimed`, topmost first; none while it is not sure what stands on what. */
  unclaimed(claimed: ReadonlySet<string>): string[];
  /** Removes a layer that nothing stands on. */
  removeLayer(id: string): Promise<void>;
  /**
   * Makes a container root and mounts it at `target` (a directory made by the caller). Idempotent by key. `changes` is a
   * file that `saveChanges` made, or somebody else: the root begins with what it says, and nothing of it comes to lie
   * outside.
   */
  mountContainer(
    key: string,
    layers: string[],
    target: string,
    look?: Look & { changes?: string | undefined },
  ): Promise<void>;
  /** Writes the container's writable part as a layer tar to `file`, which is made. Nothing may change it meanwhile. */
  saveChanges(key: string, file: string, signal: AbortSignal): Promise<void>;
  /** Mounts a chain of layers read-only (image volumes). */
  mountReadonly(key: string, layers: string[], target: string, look?: Look): Promise<void>;
  /** Unmounts `target`, lazily when it is busy. Succeeds when nothing is mounted. */
  unmount(target: string): Promise<void>;
  /** Removes the container's writable part. Succeeds when it is gone. */
  removeContainer(key: string): Promise<void>;
  /** Bytes and inodes of a container's writable part. */
  usage(key: string): Promise<{ bytes: bigint; inodes: bigint }>;
  /** Of all writable parts together. */
  containersUsage(): Promise<{ bytes: bigint; inodes: bigint }>;
}

/**
 * How files are shown: with `owners` shifted into a user namespace, with `label` all under this SELinux label
 * (mount(8), context=).
 */
export type Look = { owners?: Owners | undefined; label?: string | undefined };

/** The user namespace that files are shown in: its file, and which ids of the node its root's are. */
export type Owners = { userNamespace: string; uid: number; gid: number };

/** An uncompressed layer tar, or a blob that is read, decompressed and checked off the main thread. */
export type LayerSource = AsyncIterable<Uint8Array> | LayerBlob;

/** `file` may be compressed by gzip or zstd; `diffId` is the digest that its content must have. */
export type LayerBlob = { file: string; diffId?: string };

/** What a layer takes on disk. */
export type LayerUsage = { bytes: number; inodes: number };
