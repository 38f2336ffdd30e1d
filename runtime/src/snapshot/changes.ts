import { constants } from "node:fs";
import { type FileHandle, lstat, open, readdir, readlink, statfs } from "node:fs/promises";
import { type ErrorCode, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { deviceNumbers } from "../linux/device-numbers.ts";
import { isOpaque, isRedirected, readXattrs } from "../linux/file-attributes.ts";
import { paddingOf, tarEnd, tarHeader, type WrittenEntry } from "./tar-header.ts";

/* Paths are byte strings, as of a layer's tree. */

const { O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
const bytes = (path: string) => Buffer.from(path, "latin1");
const chunkSize = 1 << 20;
/** What stays free on the disk: a sparse file is written out. */
const free = 512 * 2 ** 20;
/** What open(2) takes, with room for the directory's own path. */
const longest = 3800;
const noXattrs: ReadonlyMap<string, Uint8Array> = new Map();

type Types = Exclude<WrittenEntry["type"], "link">;

/**
 * Writes what stands in the writable directory of an overlay as a layer (image-spec, layer.md): its files, and what is
 * removed below as whiteouts. Nothing is to write there meanwhile. Sockets are left out, as by every tar.
 */
export const writeChanges = async (upper: string, file: string, signal: AbortSignal): Promise<void> => {
  await using target = await open(file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
  const disk = await statfs(upper);
  let room = disk.bavail * disk.bsize - free;
  const root = Buffer.from(upper).toString("latin1");
  /** The first name of files that have several, by device and inode. */
  const names = new Map<string, string>();
  const todo = [""];
  for (let path = todo.pop(); path !== undefined; path = todo.pop()) {
    signal.throwIfAborted();
    if (path.length > longest) throw refused("failed-precondition", "a path in it is too long");
    const at = bytes(path === "" ? root : `${root}/${path}`);
    const stat = await lstat(at, { bigint: true });
    const entry: WrittenEntry = {
      name: path === "" ? "./" : path,
      type: "file",
      mode: Number(stat.mode),
      uid: Number(stat.uid),
      gid: Number(stat.gid),
      size: 0,
      mtime: stat.mtimeNs,
      xattrs: noXattrs,
    };
    const { major, minor } = deviceNumbers(stat.rdev);
    if (stat.isCharacterDevice() && major === 0 && minor === 0) {
      await target.writeFile(tarHeader({ ...entry, name: whiteoutOf(path), mode: 0o600 }));
      continue;
    }
    const type = typeOf(stat);
    if (type === undefined) continue;
    const inode = `${stat.dev}:${stat.ino}`;
    const first = type === "directory" || stat.nlink < 2n ? undefined : names.get(inode);
    if (first !== undefined) {
      await target.writeFile(tarHeader({ ...entry, type: "link", linkname: first }));
      continue;
    }
    if (type !== "directory" && stat.nlink > 1n) names.set(inode, path);
    if (type === "directory" && isRedirected(at))
      throw refused(
        "failed-precondition",
        "a directory of its image was moved, which the kernel notes on its own",
      );
    if (type === "file") room -= Number(stat.size);
    if (room < 0) throw refused("resource-exhausted", "the disk has no room for it");
    const attributes = { ...entry, type, xattrs: readXattrs(at) };
    if (type === "file") await writeFile(target, at, { ...attributes, size: Number(stat.size) }, signal);
    else
      await target.writeFile(
        tarHeader({
          ...attributes,
          ...(type === "symlink" && { linkname: (await readlink(at, "buffer")).toString("latin1") }),
          ...(type.endsWith("device") && { major, minor }),
        }),
      );
    if (type !== "directory") continue;
    if (path !== "" && isOpaque(at))
      await target.writeFile(tarHeader({ ...entry, name: `${path}/.wh..wh..opq`, mode: 0o600 }));
    for (const name of await readdir(at, { encoding: "buffer" }))
      todo.push(path === "" ? name.toString("latin1") : `${path}/${name.toString("latin1")}`);
  }
  await target.writeFile(tarEnd);
};

const refused = (code: ErrorCode, why: string): RuntimeError =>
  new RuntimeError(code, `Cannot save the root file system: ${why}`);

const whiteoutOf = (path: string): string => {
  const slash = path.lastIndexOf("/") + 1;
  return `${path.slice(0, slash)}.wh.${path.slice(slash)}`;
};

const typeOf = (stat: Awaited<ReturnType<typeof lstat>>): Types | undefined => {
  if (stat.isFile()) return "file";
  if (stat.isDirectory()) return "directory";
  if (stat.isSymbolicLink()) return "symlink";
  if (stat.isFIFO()) return "fifo";
  if (stat.isCharacterDevice()) return "character-device";
  return stat.isBlockDevice() ? "block-device" : undefined;
};

/** Just as many bytes as its header says, whatever becomes of the file. */
const writeFile = async (
  target: FileHandle,
  at: Buffer,
  entry: WrittenEntry,
  signal: AbortSignal,
): Promise<void> => {
  await using source = await open(at, O_RDONLY | O_NOFOLLOW);
  await target.writeFile(tarHeader(entry));
  const buffer = Buffer.allocUnsafe(Math.min(chunkSize, entry.size));
  for (let done = 0; done < entry.size; ) {
    signal.throwIfAborted();
    const { bytesRead } = await source.read(buffer, 0, Math.min(buffer.length, entry.size - done), done);
    if (bytesRead === 0) throw refused("failed-precondition", "a file in it was cut meanwhile");
    await target.writeFile(buffer.subarray(0, bytesRead));
    done += bytesRead;
  }
  await target.writeFile(Buffer.alloc(paddingOf(entry.size)));
};
