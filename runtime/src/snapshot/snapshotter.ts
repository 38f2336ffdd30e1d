/**
 * Layers on disk. A *layer* is committed and never changes; its id is the chain ID of the diff IDs up to it
 * (image-spec config.md, "Layer ChainID"). A *container root* is writable and stands on a chain of layers.
 *
 * An import: `extract(chainId, parent, tar)` for each layer from the lowest; then for each container
 * `prepare(key, layers)` → mounts with `mount(key, target)`; afterwards `unmount` and `remove`.
 */
export interface Snapshotter {
  readonly name: string;
  /** Unpacks an uncompressed layer tar; the layer exists only when this resolves. A second call for the same id is a no-op. */
  extract(
    id: string,
    parent: string | undefined,
    tar: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<void>;
  has(id: string): boolean;
  /** Removes a layer that nothing stands on. */
  removeLayer(id: string): Promise<void>;
  /**
   * Makes a container root and mounts it at `target` (a directory made by the caller). Idempotent by key. With
   * `owners` the files' owners are shifted into a user namespace.
   */
  mountContainer(key: string, layers: string[], target: string, owners?: Owners): Promise<void>;
  /** Mounts a chain of layers read-only (image volumes). */
  mountReadonly(key: string, layers: string[], target: string, owners?: Owners): Promise<void>;
  /** Unmounts `target`, lazily when it is busy. Succeeds when nothing is mounted. */
  unmount(target: string): Promise<void>;
  /** Removes the container's writable part. Succeeds when it is gone. */
  removeContainer(key: string): Promise<void>;
  /** Bytes and inodes of a container's writable part. */
  usage(key: string): Promise<{ bytes: bigint; inodes: bigint }>;
}

/** The user namespace that files are shown in: its file, and which ids of the node its root's are. */
export type Owners = { userNamespace: string; uid: number; gid: number };
