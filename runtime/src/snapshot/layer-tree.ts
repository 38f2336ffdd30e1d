/* What a layer is unpacked into. Paths are byte strings such as "usr/bin", "" for the root. */

/** What stands at a path. A whiteout is a character device 0:0, as overlayfs has it. */
export type Kind = "directory" | "symlink" | "whiteout" | "other";

export type Attributes = {
  mode: number;
  uid: number;
  gid: number;
  /** Nanoseconds since 1970. */
  mtime: bigint;
  xattrs: ReadonlyMap<string, Uint8Array>;
};

export type SpecialFile = {
  type: "character-device" | "block-device" | "fifo";
  major: number;
  minor: number;
};

/**
 * The files of a layer in the making, by the form they are kept in. The caller has looked: what is made is not there,
 * what is named is, and every parent is a real directory. Synchronous, for a worker thread.
 */
export interface LayerTree {
  kindOf(path: string): Kind | undefined;
  /** Target of a symbolic link. */
  readlink(path: string): string;
  /** With the looks of a new directory, 0755 of root's. */
  mkdir(path: string): void;
  /** What overlayfs takes for "nothing below shows through". */
  setOpaque(path: string): void;
  whiteout(path: string): void;
  symlink(path: string, to: string, attributes: Attributes): void;
  special(path: string, file: SpecialFile, attributes: Attributes): void;
  link(path: string, to: string): void;
  /** Removes what is at the path and all below it. */
  remove(path: string): void;
  dress(path: string, attributes: Attributes): void;
  /** Begins a regular file; false when something else is at its path, which is to be removed first. */
  open(path: string, size: number, isSparse: boolean): boolean;
  /** The same with chunks that come in rising order; what is left out is a hole. */
  write(chunk: Uint8Array, offset: number): void;
  close(attributes: Attributes): void;
  /** A borrowed file is copied, under both its names; the directories of the source are made first then. */
  readonly copiesUp: boolean;
  /** Puts a link at `path` to the file that a lower layer has at `from`, which is an absolute path on the host. */
  linkBelow(path: string, source: string, from: Uint8Array): void;
  /** Finishes what is kept in order for the end. Returns what the layer takes on disk. */
  seal(): Sealed;
  /** Lets go of what is held; the rest is removed by others. */
  abandon(): void;
}

export type Sealed = {
  bytes: number;
  inodes: number;
  /** Of a layer that is one file: what {@link import("./erofs/verify.ts").digestOf} finds in it. */
  digest?: string;
};
