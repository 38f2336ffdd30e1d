import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readXattrs } from "../linux/file-attributes.ts";
import { createLinux } from "../linux/linux-ffi.ts";
import { overlay } from "./overlay.ts";

/** The awkward trees, made by GNU tar from real files, layer by layer. `$T` is the layer's tar. */
const LAYERS: Record<string, string[]> = {
  "links, owners, modes, times and attributes": [
    `mkdir -p bin usr/lib 'sp ace' && echo su > bin/su && chown 3000000:2147483000 bin/su && chmod 6755 bin/su
     ln bin/su bin/again; ln -s /nowhere sym; ln sym hardsym; ln -s usr/lib lib; touch -h -d '1969-12-31T23:59:58.123456789Z' sym
     touch -d '2031-05-06T07:08:09.987654321Z' 'sp ace'; chmod 1777 'sp ace'; chown -h 65536:2097152 sym
     python3 -c 'import os; os.setxattr("bin/su", "user.note", bytes([0, 10, 61, 255])); os.setxattr("usr", "user.d", b"x")'; echo p > ping; setcap cap_net_raw+ep ping;
     mkfifo fifo; mknod null c 1 3; mknod blk b 7 300; mkdir setgid && chgrp 7 setgid && chmod 2775 setgid && echo x > setgid/f
     printf '\\351' | xargs -0 -I{} touch "{}"
     d=$(printf 'd%.0s' $(seq 120)); mkdir -p $d/$d/$d; echo deep > $d/$d/$d/$d; ln -s $d/$d/$d/$d/$d long
     tar --xattrs --xattrs-include='*' --format=pax -cf $T .`,
    // Without the directories that it stands in.
    `mkdir -p usr/lib bin 'sp ace'; echo new > usr/lib/new; echo x > 'sp ace/x'; mkdir -p gone; : > .wh.ping; : > bin/.wh.again
     tar --format=gnu -cf $T usr/lib/new 'sp ace/x' .wh.ping bin/.wh.again`,
    `mkdir -p setgid; : > setgid/.wh..wh..opq; echo only > setgid/only; echo file > usr; mkdir sym; echo in > sym/in
     tar --format=gnu -cf $T setgid usr sym`,
  ],
  "sparse files of the old form": [
    `truncate -s 3000000 hole; printf end | dd of=hole bs=1 seek=2999990 conv=notrunc status=none; truncate -s 70000 empty
     truncate -s 4M many; for n in $(seq 0 60); do printf data$n | dd of=many bs=1 seek=$((n*65536)) conv=notrunc status=none; done
     head -c 9000 /dev/zero | tr '\\0' x > begin; truncate -s 500000 begin
     tar -S --format=gnu -cf $T .`,
  ],
  ...Object.fromEntries(
    ["0.0", "0.1", "1.0"].map((version) => [
      `sparse files of form ${version}`,
      [
        `truncate -s 3000000 hole; printf end | dd of=hole bs=1 seek=2999990 conv=notrunc status=none; truncate -s 70000 empty
         truncate -s 4M many; for n in $(seq 0 60); do printf data$n | dd of=many bs=1 seek=$((n*65536)) conv=notrunc status=none; done
         tar -S --format=pax --sparse-version=${version} -cf $T .`,
      ],
    ]),
  ),
  "a real Debian tree": [
    `mkdir -p etc usr; cp -a /etc/. etc/; cp -a /usr/share/doc usr/; cp -a /usr/sbin usr/; tar --xattrs --xattrs-include='*' --numeric-owner --format=pax -cf $T .`,
  ],
};

const linux = createLinux();
const never = new AbortController().signal;

describe.each(["directory", "erofs"] as const)("layers kept as %s", (form) => {
  let base: string;
  beforeAll(() => {
    base = mkdtempSync("/tmp/bh-same-");
  });
  afterAll(() => rmSync(base, { recursive: true }));

  test.each(Object.entries(LAYERS))(
    "are file by file what umoci and GNU tar unpack: %s",
    async (name, scripts) => {
      const dir = join(base, createHash("sha256").update(name).digest("hex").slice(0, 8));
      mkdirSync(dir);
      const tars = scripts.map((script, n) => {
        const tree = join(dir, `tree-${n}`);
        mkdirSync(tree);
        const T = join(dir, `${n}.tar`);
        execFileSync("bash", ["-ec", script], { cwd: tree, env: { ...process.env, T, LC_ALL: "C" } });
        return T;
      });
      const theirRoot = name.endsWith("old form") ? byTar(dir, tars) : byUmoci(dir, tars);

      await using snapshots = await overlay(dirOf(dir, "root"), linux, { form });
      const ids = tars.map((_, n) => `sha256:${n}`);
      // All at once, the highest first: they find their order.
      const done: Promise<unknown>[] = [];
      const below = tars.map(() => Promise.withResolvers<void>());
      for (const [n, file] of [...tars.entries()].reverse())
        done.push(
          snapshots
            .extract(ids[n]!, ids[n - 1], { file }, never, below[n - 1]?.promise)
            .then(() => below[n]!.resolve()),
        );
      await Promise.all(done);
      const target = dirOf(dir, "target");
      await snapshots.mountReadonly("c", ids, target);
      try {
        const ours = listing(target);
        const theirs = listing(theirRoot);
        // Of the root itself umoci makes its own.
        for (const list of [ours, theirs]) list.delete("");
        expect([...ours.keys()].sort()).toEqual([...theirs.keys()].sort());
        for (const [path, found] of ours) expect({ path, ...found }).toEqual({ path, ...theirs.get(path) });
        if (form === "erofs")
          for (const image of readdirSync(join(dir, "root/l")).filter(
            (each) => each !== "none" && each !== "void",
          ))
            execFileSync("fsck.erofs", [join(dir, "root/l", image)]);
      } finally {
        await snapshots.unmount(target);
        await snapshots.removeContainer("c");
      }
    },
  );
});

const byUmoci = (dir: string, tars: string[]): string => {
  execFileSync("umoci", ["init", "--layout", join(dir, "oci")]);
  execFileSync("umoci", ["new", "--image", `${dir}/oci:x`]);
  for (const tar of tars) execFileSync("umoci", ["raw", "add-layer", "--image", `${dir}/oci:x`, tar]);
  execFileSync("umoci", ["unpack", "--image", `${dir}/oci:x`, join(dir, "bundle")]);
  return join(dir, "bundle/rootfs");
};

/** umoci does not know the old form of sparse files. */
const byTar = (dir: string, tars: string[]): string => {
  const root = dirOf(dir, "tar");
  for (const tar of tars) execFileSync("tar", ["--numeric-owner", "-C", root, "-xpf", tar]);
  return root;
};

const dirOf = (...parts: string[]) => {
  const path = join(...parts);
  mkdirSync(path);
  return path;
};

type Looks = Record<string, unknown>;

/** Everything that can be seen of each file; `twin` is the first name of the same file. */
const listing = (root: string): Map<string, Looks> => {
  const found = new Map<string, Looks>();
  const first = new Map<string, string>();
  const todo = [""];
  for (let name = todo.pop(); name !== undefined; name = todo.pop()) {
    const path = Buffer.from(name === "" ? root : `${root}/${name}`, "latin1");
    const stat = lstatSync(path, { bigint: true });
    const isFile = stat.isFile();
    const key = `${stat.dev}:${stat.ino}`;
    found.set(name, {
      mode: stat.mode.toString(8),
      owner: `${stat.uid}:${stat.gid}`,
      mtime: stat.mtimeNs,
      device: stat.isCharacterDevice() || stat.isBlockDevice() ? stat.rdev : undefined,
      size: isFile ? stat.size : undefined,
      xattrs: Object.fromEntries(
        [...readXattrs(path)].map(([key, value]) => [key, Buffer.from(value).toString("hex")]),
      ),
      target: stat.isSymbolicLink() ? readlinkSync(path, "latin1") : undefined,
      content: isFile ? createHash("sha256").update(readFileSync(path)).digest("hex") : undefined,
      // A name that a layer above took away still counts in what the kernel says: only names that are there do here.
      twin: stat.isDirectory() ? undefined : (first.get(key) ?? name),
    });
    if (!first.has(key)) first.set(key, name);
    if (!stat.isDirectory()) continue;
    const names = readdirSync(path, { encoding: "latin1" }).sort();
    for (const child of names.reverse()) todo.push(name === "" ? child : `${name}/${child}`);
  }
  return found;
};
