import { execFileSync } from "node:child_process";
import {
  closeSync,
  copyFileSync,
  existsSync,
  fstatSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { createDisks, type Disks } from "./disks.ts";

let dir: string;
let tree: string;
let disks: Disks;
const undo: (() => void)[] = [];
const signal = () => AbortSignal.timeout(30_000);

beforeEach(async () => {
  // Not on tmpfs: a loop device is to be made of it.
  dir = mkdtempSync("/var/tmp/bh-disks-");
  tree = join(dir, "tree");
  mkdirSync(join(tree, "etc"), { recursive: true });
  writeFileSync(join(tree, "etc/motd"), "hello", { mode: 0o640 });
  linkSync(join(tree, "etc/motd"), join(tree, "etc/same"));
  symlinkSync("../etc/motd", join(tree, "etc/link"));
  copyFileSync("/bin/busybox", join(tree, "busybox"));
  disks = await createDisks(join(dir, "disks"));
});
afterEach(async () => {
  for (const each of undo.splice(0).reverse()) each();
  await disks.sweep(new Set());
  rmSync(dir, { recursive: true, force: true });
});

/** The disk as a guest sees it. */
const mounted = (file: string): string => {
  const at = mkdtempSync(join(dir, "mnt-"));
  execFileSync("mount", ["-o", file.startsWith("/dev/") ? "rw" : "loop,rw", file, at]);
  undo.push(() => execFileSync("umount", [at]));
  return at;
};

describe("A disk", () => {
  test("shows the files that it was made of, with modes and links", async () => {
    const at = mounted(await disks.make("c1", tree, 64, signal()));
    expect(readFileSync(join(at, "etc/motd"), "utf8")).toBe("hello");
    expect(statSync(join(at, "etc/motd")).mode & 0o7777).toBe(0o640);
    expect(statSync(join(at, "etc/same")).ino).toBe(statSync(join(at, "etc/motd")).ino);
    expect(readFileSync(join(at, "etc/link"), "utf8")).toBe("hello");
  });

  test("is writable up to its size and full then, and the node's files stay as they were", async () => {
    const at = mounted(await disks.make("c1", tree, 64, signal()));
    writeFileSync(join(at, "small"), "x");
    expect(() => writeFileSync(join(at, "big"), Buffer.alloc(70 << 20))).toThrow(/ENOSPC/);
    expect(existsSync(join(tree, "small"))).toBe(false);
  });

  test("takes of the node's disk what is in it, not its size", async () => {
    await disks.make("c1", tree, 1024, signal());
    const used = await disks.usage("c1");
    expect(used).toBeGreaterThan(1n << 20n);
    expect(used).toBeLessThan(64n << 20n);
    expect(await disks.usage("other")).toBe(0n);
  });

  test("gives back what it took when it goes, also while somebody holds it open", async () => {
    const fd = openSync(await disks.make("c1", tree, 64, signal()), "r+");
    undo.push(() => closeSync(fd));
    await disks.remove("c1");
    expect(fstatSync(fd).blocks).toBe(0);
  });

  test("is made once, and each container has its own", async () => {
    const first = await disks.make("c1", tree, 64, signal());
    rmSync(join(tree, "busybox"));
    expect(await disks.make("c1", tree, 64, signal())).toBe(first);
    expect(existsSync(join(mounted(first), "busybox"))).toBe(true);
    expect(await disks.make("c2", tree, 64, signal())).not.toBe(first);
  });

  test("too small for its files is refused in words, and leaves nothing", async () => {
    truncateSync(join(tree, "busybox"), 0);
    writeFileSync(join(tree, "big"), Buffer.alloc(20 << 20, 1));
    await expect(disks.make("c1", tree, 8, signal())).rejects.toMatchObject({
      code: "resource-exhausted",
      message: expect.stringContaining("set a larger diskSize"),
    });
    expect(readdirSync(join(dir, "disks"))).toEqual([]);
  });

  test("of a caller that gave up leaves nothing", async () => {
    const cancelled = AbortSignal.abort(new Error("gone"));
    await expect(disks.make("c1", tree, 64, cancelled)).rejects.toThrow("gone");
    expect(readdirSync(join(dir, "disks"))).toEqual([]);
  });

  test("as a device is one device however often it is asked for, and goes with the disk", async () => {
    await disks.make("c1", tree, 64, signal());
    const device = await disks.attach("c1", signal());
    expect(device).toMatch(/^\/dev\/loop[0-9]+$/);
    expect(await disks.attach("c1", signal())).toBe(device);
    await disks.remove("c1");
    expect(
      execFileSync("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"], { encoding: "utf8" }),
    ).not.toContain(dir);
    expect(readdirSync(join(dir, "disks"))).toEqual([]);
    await disks.remove("c1");
  });

  test("of no record is swept away after a restart, half-made ones and their devices too", async () => {
    await disks.make("kept", tree, 64, signal());
    await disks.make("lost", tree, 64, signal());
    await disks.attach("lost", signal());
    writeFileSync(join(dir, "disks/half.ext4.new"), "");
    const next = await createDisks(join(dir, "disks"));
    await next.sweep(new Set(["kept"]));
    expect(readdirSync(join(dir, "disks"))).toEqual(["kept.ext4"]);
    expect(
      execFileSync("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"], { encoding: "utf8" }),
    ).not.toContain(dir);
  });

  test("of a key that is a path is refused", async () => {
    await expect(disks.make("../x", tree, 64, signal())).rejects.toThrow('Cannot use "../x"');
  });
});
