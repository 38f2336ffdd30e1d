/** An entry of a tar archive that is written; names are byte strings, as those of {@link import("./tar.ts").TarEntry}. */
export type WrittenEntry = {
  name: string;
  type: "file" | "link" | "symlink" | "character-device" | "block-device" | "directory" | "fifo";
  mode: number;
  uid: number;
  gid: number;
  size: number;
  /** Nanoseconds since 1970. */
  mtime: bigint;
  linkname?: string;
  major?: number;
  minor?: number;
  xattrs: ReadonlyMap<string, Uint8Array>;
};

const block = 512;
const flags: Record<WrittenEntry["type"], string> = {
  file: "0",
  link: "1",
  symlink: "2",
  "character-device": "3",
  "block-device": "4",
  directory: "5",
  fifo: "6",
};

/** What ends an archive. */
export const tarEnd: Uint8Array = Buffer.alloc(2 * block);

/** The bytes that stand behind a body of `size`. */
export const paddingOf = (size: number): number => (block - (size % block)) % block;

/** The header of an entry, before it an extended one that says all of it exactly (POSIX.1-2017, pax). */
export const tarHeader = (entry: WrittenEntry): Buffer => {
  const { name, linkname = "", size, uid, gid, mtime, xattrs } = entry;
  const nanos = ((mtime % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n;
  const seconds = (mtime - nanos) / 1_000_000_000n;
  const extended = Buffer.concat([
    paxLine("path", name),
    ...(linkname === "" ? [] : [paxLine("linkpath", linkname)]),
    paxLine("size", String(size)),
    paxLine("uid", String(uid)),
    paxLine("gid", String(gid)),
    paxLine("mtime", `${seconds}.${String(nanos).padStart(9, "0")}`),
    ...[...xattrs].map(([key, value]) => paxLine(`SCHILY.xattr.${key}`, value)),
  ]);
  return Buffer.concat([
    ustar({ ...entry, name: "pax", size: extended.length }, "x"),
    extended,
    Buffer.alloc(paddingOf(extended.length)),
    ustar(entry, flags[entry.type]),
  ]);
};

/** "LENGTH KEY=VALUE\n", whose length counts itself. */
const paxLine = (key: string, value: string | Uint8Array): Buffer => {
  const rest = Buffer.concat([
    Buffer.from(` ${key}=`, "latin1"),
    typeof value === "string" ? Buffer.from(value, "latin1") : value,
    Buffer.from("\n"),
  ]);
  let length = rest.length + 1;
  while (String(length).length + rest.length > length) length++;
  return Buffer.concat([Buffer.from(String(length)), rest]);
};

const ustar = (entry: WrittenEntry, flag: string): Buffer => {
  const header = Buffer.alloc(block);
  const text = (at: number, width: number, value: string) =>
    header.write(value.slice(0, width), at, "latin1");
  // What does not fit is right in the extended header.
  const number = (at: number, width: number, value: number) => {
    const digits = Math.max(0, value).toString(8);
    text(at, width, digits.length < width ? digits.padStart(width - 1, "0") : "0".repeat(width - 1));
  };
  text(0, 100, entry.name);
  number(100, 8, entry.mode & 0o7777);
  number(108, 8, entry.uid);
  number(116, 8, entry.gid);
  number(124, 12, entry.size);
  number(136, 12, Number(entry.mtime / 1_000_000_000n));
  text(156, 1, flag);
  text(157, 100, flag === "x" ? "" : (entry.linkname ?? ""));
  text(257, 8, "ustar\x0000");
  number(329, 8, entry.major ?? 0);
  number(337, 8, entry.minor ?? 0);
  header.fill(" ", 148, 156);
  const sum = header.reduce((total, byte) => total + byte, 0);
  text(148, 8, `${sum.toString(8).padStart(6, "0")}\0 `);
  return header;
};
