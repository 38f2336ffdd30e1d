/** One file of a layer. Owners default to root, times are always zero: equal files make equal layers. */
export type Entry = { path: string; uid?: number; gid?: number } & (
  | { type: "file"; mode?: number; data: Uint8Array | string }
  | { type: "folder"; mode?: number }
  /** A symbolic link; `to` is kept as it is. */
  | { type: "symlink"; to: string }
  /** A hard link to an earlier entry's path, with that entry's mode: containerd applies a link's own. */
  | { type: "link"; to: string; mode: number }
);

const block = 512;
const flags = { file: "0", link: "1", symlink: "2", folder: "5" } as const;

/** Writes entries as a POSIX ustar archive. */
export const tarOf = (entries: readonly Entry[]): Buffer => {
  const parts: Buffer[] = [];
  for (const entry of entries) {
    const data = entry.type === "file" ? Buffer.from(entry.data) : Buffer.alloc(0);
    parts.push(headerOf(entry, data.length), data, Buffer.alloc((block - (data.length % block)) % block));
  }
  parts.push(Buffer.alloc(2 * block));
  return Buffer.concat(parts);
};

const headerOf = (entry: Entry, size: number): Buffer => {
  const header = Buffer.alloc(block);
  const name = entry.path + (entry.type === "folder" ? "/" : "");
  const link = entry.type === "link" || entry.type === "symlink" ? entry.to : "";
  // A long name is cut at a slash: what stands before it goes into the prefix of 155 bytes.
  const cut = Buffer.byteLength(name) <= 100 ? -1 : name.indexOf("/", name.length - 101);
  const [prefix, last] = cut < 0 ? ["", name] : [name.slice(0, cut), name.slice(cut + 1)];
  if (Buffer.byteLength(last) > 100 || Buffer.byteLength(prefix) > 155 || Buffer.byteLength(link) > 100) {
    throw new RangeError(`Cannot put "${name}" into a tar: its name or link is too long`);
  }
  const mode =
    "mode" in entry && entry.mode !== undefined ? entry.mode : entry.type === "folder" ? 0o755 : 0o644;
  const octal = (value: number, at: number, width: number): void => {
    header.write(`${value.toString(8).padStart(width - 1, "0")}\0`, at, "latin1");
  };
  header.write(last, 0);
  octal(entry.type === "symlink" ? 0o777 : mode, 100, 8);
  octal(entry.uid ?? 0, 108, 8);
  octal(entry.gid ?? 0, 116, 8);
  octal(size, 124, 12);
  octal(0, 136, 12);
  header.write("        ", 148, "latin1");
  header.write(flags[entry.type], 156, "latin1");
  header.write(link, 157);
  header.write("ustar\x0000", 257, "latin1");
  header.write(prefix, 345);
  octal(
    header.reduce((sum, byte) => sum + byte, 0),
    148,
    7,
  );
  return header;
};
