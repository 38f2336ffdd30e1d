import { execFileSync } from "node:child_process";
import {
  chmodSync,
  closeSync,
  existsSync,
  lchownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeEach, describe, expect, test } from "vitest";
import { type LayerEntry, layerTar } from "./conformance-tar.ts";
import type { Snapshotter } from "./snapshotter.ts";

const never = new AbortController().signal;

/** Everything that can be seen of a tree's files, as text. */
const treeOf = (root: string): string =>
  execFileSync(
    "sh",
    [
      "-c",
      `cd "$1" && find . -printf '/%P %M %U %G %T@ %n %l\\n' | sort && find . -type f -exec cksum {} + | sort &&
       find . -exec stat -c '%n %t %T' {} + | sort && getcap -r . 2>/dev/null | sort`,
      "sh",
      root,
    ],
    { encoding: "latin1" },
  );
/** cap_net_raw+ep, with bytes that are no text. */
const setCapability = (file: string): void =>
  void execFileSync("setcap", ["cap_net_raw,cap_sys_admin,cap_mknod+ep", file]);

/**
 * What every snapshotter must do, whatever it is made of. `make` opens one at an empty directory; opening it again
 * there must find what was. Needs root and a file system that may hold layers.
 */
export const snapshotterConformance = (
  name: string,
  make: (root: string) => Promise<Snapshotter & AsyncDisposable>,
): void => {
  describe(`${name} is a snapshotter`, () => {
    const base = mkdtempSync("/tmp/bh-snapshot-");
    const opened: (Snapshotter & AsyncDisposable)[] = [];
    const targets: string[] = [];
    let root: string;
    let snapshots: Snapshotter;
    let serial = 0;

    const open = async () => {
      const snapshotter = await make(root);
      opened.push(snapshotter);
      return snapshotter;
    };
    beforeEach(async () => {
      root = join(base, `root-${serial++}`);
      mkdirSync(root);
      snapshots = await open();
    });
    afterEach(async () => {
      for (const target of targets.splice(0)) await snapshots.unmount(target);
      for (const key of readdirSync(join(root, "containers"))) await snapshots.removeContainer(key);
    });
    afterAll(async () => {
      await Promise.all(opened.map((snapshotter) => snapshotter[Symbol.asyncDispose]()));
      // All that was mounted is gone: a mount that stays is a leak, and makes this fail.
      rmSync(base, { recursive: true });
    });

    const target = () => {
      const path = join(base, `target-${serial++}`);
      mkdirSync(path);
      targets.push(path);
      return path;
    };
    const mounted = async (key: string, ...layers: string[]) => {
      const path = target();
      await snapshots.mountContainer(key, layers, path);
      return path;
    };
    const extract = (id: string, parent: string | undefined, ...entries: LayerEntry[]) =>
      snapshots.extract(id, parent, layerTar(...entries), never);

    test("extract() makes a layer, and a second one of the same id is a no-op", async () => {
      expect(snapshots.has("sha256:a")).toBe(false);
      await extract("sha256:a", undefined, { name: "f", body: "first" });
      expect(snapshots.has("sha256:a")).toBe(true);
      await extract("sha256:a", undefined, { name: "f", body: "second" });
      const path = await mounted("c", "sha256:a");
      expect(readFileSync(join(path, "f"), "utf8")).toBe("first");
    });

    test("two extract() of one id at once make one layer", async () => {
      await Promise.all(["1", "2"].map((body) => extract("sha256:a", undefined, { name: "f", body })));
      expect(["1", "2"]).toContain(readFileSync(join(await mounted("c", "sha256:a"), "f"), "utf8"));
    });

    test("a layer whose tar breaks off does not exist, and can be extracted after all", async () => {
      const whole = Buffer.concat(await Array.fromAsync(layerTar({ name: "f", body: "x".repeat(5000) })));
      const broken = (async function* () {
        yield whole.subarray(0, 3000);
      })();
      await expect(snapshots.extract("sha256:a", undefined, broken, never)).rejects.toThrow(/middle/);
      expect(snapshots.has("sha256:a")).toBe(false);
      await extract("sha256:a", undefined, { name: "f" });
      expect(snapshots.has("sha256:a")).toBe(true);
    });

    test("a source that fails is no layer, and its error is passed on", async () => {
      const failing = (async function* () {
        yield new Uint8Array(512 * 4).fill(0, 0, 0);
        throw new Error("digest mismatch");
      })();
      await expect(snapshots.extract("sha256:a", undefined, failing, never)).rejects.toThrow(
        "digest mismatch",
      );
      expect(snapshots.has("sha256:a")).toBe(false);
    });

    test("extract() ends when it is cancelled, though the source has stopped", async () => {
      const stalled = (async function* () {
        yield new Uint8Array(0);
        await new Promise(() => {});
      })();
      await expect(
        snapshots.extract("sha256:a", undefined, stalled, AbortSignal.timeout(50)),
      ).rejects.toMatchObject({ code: "cancelled" });
      expect(snapshots.has("sha256:a")).toBe(false);
    });

    test("extract() on a parent that is not there is refused", async () => {
      await expect(extract("sha256:b", "sha256:absent", { name: "f" })).rejects.toMatchObject({
        code: "not-found",
      });
    });

    test("owners, modes, times, links and devices come out as the tar has them", async () => {
      const mtime = new Date("2011-11-11T11:11:11Z");
      // Beyond the seven octal digits that a plain header has.
      const large = { uid: "1000000", gid: "2000000000" };
      await extract(
        "sha256:a",
        undefined,
        { name: "./", type: "directory", mode: 0o751, mtime },
        { name: "bin/", type: "directory", mode: 0o1777, uid: 7, gid: 8, mtime },
        { name: "bin/su", mode: 0o6755, pax: large, mtime, body: "#!" },
        { name: "bin/again", type: "link", linkname: "bin/su" },
        { name: "bin/sh", type: "symlink", linkname: "/nowhere/dash", uid: 5, gid: 6, mtime },
        { name: "dev/null", type: "character-device", mode: 0o666, devmajor: 1, devminor: 3 },
        { name: "dev/loop", type: "block-device", mode: 0o660, devmajor: 7, devminor: 300 },
        { name: "run/initctl", type: "fifo", mode: 0o600 },
        { name: `${"long/".repeat(60)}file`, body: "deep" },
      );
      const path = await mounted("c", "sha256:a");
      const at = (file: string) => lstatSync(join(path, file));
      expect(at(".")).toMatchObject({ mode: 0o040751, mtime });
      expect(at("bin")).toMatchObject({ mode: 0o041777, uid: 7, gid: 8, mtime });
      expect(at("bin/su")).toMatchObject({ mode: 0o106755, uid: 1e6, gid: 2e9, mtime, size: 2, nlink: 2 });
      expect(at("bin/again").ino).toBe(at("bin/su").ino);
      expect(at("bin/sh")).toMatchObject({ uid: 5, gid: 6, mtime });
      expect(readlinkSync(join(path, "bin/sh"))).toBe("/nowhere/dash");
      expect(at("dev/null")).toMatchObject({ mode: 0o020666, rdev: 0x103 });
      expect(at("dev/loop")).toMatchObject({ mode: 0o060660, rdev: 0x10072c });
      expect(at("run/initctl").isFIFO()).toBe(true);
      expect(readFileSync(join(path, "long/".repeat(60), "file"), "utf8")).toBe("deep");
    });

    test("a layer hides what it has removed and what it has emptied", async () => {
      await extract(
        "sha256:a",
        undefined,
        ...["gone", "kept", "dir/old", "dir2/old"].map((file) => ({ name: file })),
      );
      await extract(
        "sha256:b",
        "sha256:a",
        { name: ".wh.gone" },
        // Either order: the marker hides what is below, never what its own layer brings.
        { name: "dir/new" },
        { name: "dir/.wh..wh..opq" },
        { name: "dir2/.wh..wh..opq" },
        { name: "dir2/new" },
      );
      const path = await mounted("c", "sha256:a", "sha256:b");
      expect(readdirSync(path).sort()).toEqual(["dir", "dir2", "kept"]);
      expect(readdirSync(join(path, "dir"))).toEqual(["new"]);
      expect(readdirSync(join(path, "dir2"))).toEqual(["new"]);
    });

    test("a directory in the place of a removed one shows nothing of that one", async () => {
      await extract("sha256:a", undefined, { name: "d/old" }, { name: "e/old" });
      await extract(
        "sha256:b",
        "sha256:a",
        { name: ".wh.d" },
        { name: "d", type: "directory" },
        { name: "e/new" },
        { name: ".wh.e" },
      );
      const path = await mounted("c", "sha256:a", "sha256:b");
      expect(readdirSync(join(path, "d"))).toEqual([]);
      expect(readdirSync(join(path, "e"))).toEqual(["new"]);
    });

    test("a directory that a layer does not list looks as it does below", async () => {
      await extract("sha256:a", undefined, { name: "tmp", type: "directory", mode: 0o1777, uid: 9 });
      await extract("sha256:b", "sha256:a", { name: "tmp/x" });
      const { mode, uid } = statSync(join(await mounted("c", "sha256:a", "sha256:b"), "tmp"));
      expect({ mode, uid }).toEqual({ mode: 0o041777, uid: 9 });
    });

    test("a hard link may name a file of a layer below", async () => {
      await extract("sha256:a", undefined, { name: "bin/busybox", body: "applets", mode: 0o755 });
      await extract("sha256:b", "sha256:a", { name: "bin/ls", type: "link", linkname: "bin/busybox" });
      const path = await mounted("c", "sha256:a", "sha256:b");
      expect(readFileSync(join(path, "bin/ls"), "utf8")).toBe("applets");
      expect(statSync(join(path, "bin/ls")).mode & 0o777).toBe(0o755);
    });

    test("what a container writes is its own, and is there again after unmount() and mountContainer()", async () => {
      await extract("sha256:a", undefined, { name: "f", body: "layer" });
      const first = await mounted("one", "sha256:a");
      writeFileSync(join(first, "f"), "mine");
      const second = await mounted("two", "sha256:a");
      expect(readFileSync(join(second, "f"), "utf8")).toBe("layer");
      await snapshots.mountContainer("one", ["sha256:a"], first);
      await snapshots.unmount(first);
      expect(readdirSync(first)).toEqual([]);
      await snapshots.mountContainer("one", ["sha256:a"], first);
      expect(readFileSync(join(first, "f"), "utf8")).toBe("mine");
    });

    test("what a container has changed can be saved, and be the beginning of another's root", async () => {
      await extract(
        "sha256:a",
        undefined,
        ...["gone", "kept", "dir/old", "sub/gone", "sub/kept"].map((file) => ({ name: file })),
      );
      const first = await mounted("one", "sha256:a");
      const at = (file: string) => join(first, file);
      for (const file of ["gone", "sub/gone"]) rmSync(at(file));
      rmSync(at("dir"), { recursive: true });
      mkdirSync(at("dir"));
      const bytes = Buffer.from([0, 0xff, 10, 0xc3, 0x28]);
      writeFileSync(at("dir/new"), bytes, { mode: 0o604 });
      lchownSync(at("dir/new"), 3_000_000_000, 2_200_000);
      // Attributes of a file and names are bytes, not text.
      setCapability(at("dir/new"));
      writeFileSync(Buffer.concat([Buffer.from(at("")), Buffer.from([0x66, 0xff, 0x0a])]), "odd");
      writeFileSync(at("x".repeat(200)), "long");
      linkSync(at("dir/new"), at("same"));
      symlinkSync("/etc/passwd", at("link"));
      execFileSync("mkfifo", [at("fifo")]);
      execFileSync("mknod", [at("device"), "b", "259", "70000"]);
      utimesSync(at("dir/new"), 1e9, 1e9 + 0.25);
      chmodSync(first, 0o750);
      const file = join(base, `changes-${serial++}.tar`);
      await snapshots.saveChanges("one", file, never);
      const second = target();
      await snapshots.mountContainer("two", ["sha256:a"], second, { changes: file });
      expect(treeOf(second)).toEqual(treeOf(first));
      expect(treeOf(second)).toContain("/sub/kept");
      expect(treeOf(second)).not.toMatch(/gone|old/);
      expect(readFileSync(join(second, "same"))).toEqual(bytes);
      // A reader that is not ours finds the same names.
      const listed = execFileSync("tar", ["tf", file]).toString();
      for (const name of ["dir/new", "same", ".wh.gone", "sub/.wh.gone", "x".repeat(200)])
        expect(listed.split("\n")).toContain(name);
    });

    test("changes by somebody else lie inside the root, or there is none", async () => {
      await extract("sha256:a", undefined, { name: "etc/passwd", body: "layer" });
      const outside = join(base, "outside");
      const file = join(base, `changes-${serial++}.tar`);
      const tar = async (...entries: LayerEntry[]) => {
        const parts: Uint8Array[] = [];
        for await (const part of layerTar(...entries)) parts.push(part);
        writeFileSync(file, Buffer.concat(parts));
      };
      await tar({ name: "a", type: "symlink", linkname: base }, { name: "a/outside", body: "x" });
      const path = target();
      await snapshots.mountContainer("one", ["sha256:a"], path, { changes: file });
      expect(existsSync(outside)).toBe(false);
      for (const name of ["../../../outside", "x/../../outside"]) {
        await tar({ name, body: "x" });
        await expect(
          snapshots.mountContainer("two", ["sha256:a"], target(), { changes: file }),
        ).rejects.toThrow('has ".."');
        await snapshots.removeContainer("two");
      }
      await tar({ name: "zeros", body: Buffer.alloc(1 << 20) });
      writeFileSync(file, gzipSync(readFileSync(file)));
      await expect(
        snapshots.mountContainer("two", ["sha256:a"], target(), { changes: file }),
      ).rejects.toThrow("more than");
      expect(existsSync(outside)).toBe(false);
    });

    test("an image of no layers is an empty root", async () => {
      const path = await mounted("c");
      expect(readdirSync(path)).toEqual([]);
      writeFileSync(join(path, "x"), "");
    });

    test("a chain of 120 layers mounts", { timeout: 30_000 }, async () => {
      const ids: string[] = [];
      for (let n = 0; n < 120; n++) {
        await extract(`sha256:${n}`, ids.at(-1), { name: `f${n}` }, { name: "top", body: `${n}` });
        ids.push(`sha256:${n}`);
      }
      const path = await mounted("c", ...ids);
      expect(readFileSync(join(path, "top"), "utf8")).toBe("119");
      expect(readdirSync(path)).toHaveLength(121);
    });

    test.each([0, 1, 2])("mountReadonly() of %i layers shows them and takes no write", async (count) => {
      const ids = ["sha256:a", "sha256:b"].slice(0, count);
      for (const [n, id] of ids.entries()) await extract(id, ids[n - 1], { name: `f${n}` });
      const path = target();
      await snapshots.mountReadonly("image", ids, path);
      await snapshots.mountReadonly("image", ids, path);
      expect(readdirSync(path)).toEqual(ids.map((_, n) => `f${n}`));
      expect(() => writeFileSync(join(path, "x"), "")).toThrow(/EROFS/);
      await snapshots.unmount(path);
      await snapshots.removeContainer("image");
    });

    test("unmount() succeeds when the root is busy and when nothing is mounted", async () => {
      const path = await mounted("c");
      const fd = openSync(join(path, "open"), "w");
      await snapshots.unmount(path);
      closeSync(fd);
      expect(readdirSync(path)).toEqual([]);
      await snapshots.unmount(path);
      await snapshots.unmount(join(path, "absent"));
    });

    test("removeLayer() refuses while something stands on it, and succeeds when it is gone", async () => {
      await extract("sha256:a", undefined, { name: "f" });
      await extract("sha256:b", "sha256:a", { name: "g" });
      await expect(snapshots.removeLayer("sha256:a")).rejects.toMatchObject({ code: "failed-precondition" });
      const path = await mounted("c", "sha256:a", "sha256:b");
      await expect(snapshots.removeLayer("sha256:b")).rejects.toMatchObject({ code: "failed-precondition" });
      await snapshots.unmount(path);
      await snapshots.removeContainer("c");
      await snapshots.removeContainer("c");
      await snapshots.removeLayer("sha256:b");
      await snapshots.removeLayer("sha256:a");
      await snapshots.removeLayer("sha256:a");
      expect(snapshots.has("sha256:a")).toBe(false);
    });

    test("layers and container roots are there after the daemon was killed", async () => {
      await extract("sha256:a", undefined, { name: "f" });
      const path = await mounted("c", "sha256:a");
      writeFileSync(join(path, "mine"), "1");
      snapshots = await open();
      expect(snapshots.has("sha256:a")).toBe(true);
      await snapshots.mountContainer("c", ["sha256:a"], path);
      expect(existsSync(join(path, "mine"))).toBe(true);
      await expect(snapshots.removeLayer("sha256:a")).rejects.toMatchObject({ code: "failed-precondition" });
      expect((await snapshots.usage("c")).inodes).toBeGreaterThan(1n);
    });

    test("what layers and containers are said to take is what du finds", async () => {
      const du = (path: string, ...options: string[]): number => {
        // What was written has its blocks when it is on the disk.
        execFileSync("sync", ["-f", path]);
        return Number.parseInt(execFileSync("du", ["-s", ...options, path], { encoding: "utf8" }), 10);
      };
      const before = { bytes: du(root, "-B1"), inodes: du(root, "--inodes") };
      const said = await extract(
        "sha256:a",
        undefined,
        { name: "large", body: Buffer.alloc(3_000_000, 1) },
        { name: "link", type: "link", linkname: "large" },
        ...Array.from({ length: 300 }, (_, n) => ({ name: `d${n % 20}/small${n}`, body: "x".repeat(n) })),
        ...Array.from({ length: 40 }, (_, n) => ({
          name: `s${n}`,
          type: "symlink" as const,
          linkname: "large",
        })),
      );
      const took = {
        bytes: du(root, "-B1") - before.bytes,
        inodes: du(root, "--inodes") - before.inodes,
      };
      expect(said.bytes / took.bytes).toBeGreaterThan(0.9);
      expect(said.bytes / took.bytes).toBeLessThan(1.1);
      // Its record, and where it is kept, are files too.
      expect(Math.abs(said.inodes - took.inodes)).toBeLessThanOrEqual(3);

      const path = await mounted("c", "sha256:a");
      writeFileSync(join(path, "written"), Buffer.alloc(2_000_000, 2));
      for (let n = 0; n < 50; n++) writeFileSync(join(path, `more${n}`), "x");
      const upper = join(root, "containers", "c", "upper");
      const [bytes, inodes] = [du(upper, "-B1"), du(upper, "--inodes")];
      const written = await snapshots.usage("c");
      expect(Number(written.bytes) / bytes).toBeGreaterThan(0.98);
      expect(Number(written.bytes) / bytes).toBeLessThan(1.02);
      expect(Number(written.inodes)).toBe(inodes);
    });

    test("usage() counts what the container wrote and nothing of its layers", async () => {
      await extract("sha256:a", undefined, { name: "big", body: "x".repeat(1_000_000) });
      const path = await mounted("c", "sha256:a");
      writeFileSync(join(path, "mine"), Buffer.alloc(200_000, 1));
      const { bytes, inodes } = await snapshots.usage("c");
      expect(Number(bytes)).toBeGreaterThanOrEqual(200_000);
      expect(Number(bytes)).toBeLessThan(300_000);
      expect(inodes).toBe(2n);
      await expect(snapshots.usage("absent")).rejects.toMatchObject({ code: "not-found" });
    });

    const secret = join(base, "secret");
    test.each<[string, LayerEntry[]]>([
      ["a name with ..", [{ name: "../secret", body: "x" }]],
      ["a name with .. inside", [{ name: "a/../../secret", body: "x" }]],
      ["a hard link to ..", [{ name: "l", type: "link", linkname: "../../secret" }]],
      ["a hard link to a file of the host", [{ name: "l", type: "link", linkname: secret }]],
      [
        "a hard link through a symbolic link out",
        [
          { name: "out", type: "symlink", linkname: base },
          { name: "l", type: "link", linkname: "out/secret" },
        ],
      ],
      ["a whiteout of ..", [{ name: "a/.wh..." }, { name: ".wh..", body: "" }]],
      [
        "a hard link to a directory",
        [
          { name: "d", type: "directory" },
          { name: "l", type: "link", linkname: "d" },
        ],
      ],
      ["a file in the place of the root", [{ name: ".", type: "symlink", linkname: "/" }]],
      ["a file below a file", [{ name: "f" }, { name: "f/g" }]],
      [
        "symbolic links in a circle",
        [
          { name: "a", type: "symlink", linkname: "b" },
          { name: "b", type: "symlink", linkname: "a" },
          { name: "a/x" },
        ],
      ],
    ])("refuses %s", async (_, entries) => {
      writeFileSync(secret, "host");
      await expect(extract("sha256:a", undefined, ...entries)).rejects.toMatchObject({
        code: "invalid-argument",
      });
      expect(snapshots.has("sha256:a")).toBe(false);
      expect(readFileSync(secret, "utf8")).toBe("host");
      expect(statSync(secret).nlink).toBe(1);
    });

    test("a symbolic link among the parents leads inside the layer, wherever it points", async () => {
      writeFileSync(secret, "host");
      await extract(
        "sha256:a",
        undefined,
        { name: "abs", type: "symlink", linkname: base },
        { name: "up", type: "symlink", linkname: "../../../../../.." },
        { name: "abs/secret", body: "layer" },
        { name: "up/secret", body: "layer" },
        { name: "/rooted", body: "layer" },
      );
      const path = await mounted("c", "sha256:a");
      expect(readFileSync(secret, "utf8")).toBe("host");
      expect(readFileSync(join(path, base, "secret"), "utf8")).toBe("layer");
      expect(readFileSync(join(path, "secret"), "utf8")).toBe("layer");
      expect(readFileSync(join(path, "rooted"), "utf8")).toBe("layer");
    });

    test("a directory that turns into a symbolic link half-way leads nowhere", async () => {
      writeFileSync(secret, "host");
      await extract(
        "sha256:a",
        undefined,
        { name: "d/x" },
        { name: "d", type: "symlink", linkname: base },
        { name: "d/secret", body: "layer" },
        { name: "s", type: "symlink", linkname: secret },
        { name: "s", body: "layer" },
      );
      expect(readFileSync(secret, "utf8")).toBe("host");
      const path = await mounted("c", "sha256:a");
      expect(lstatSync(join(path, "s")).isFile()).toBe(true);
    });
  });
};
