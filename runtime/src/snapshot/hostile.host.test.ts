import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { createLinux } from "../linux/linux-ffi.ts";
import { createApplier } from "./apply.ts";
import { type LayerEntry, layerTar } from "./conformance-tar.ts";
import { createDirectoryTree } from "./directory-tree.ts";
import { createErofsTree } from "./erofs/tree.ts";
import { overlay } from "./overlay.ts";
import { createTarReader } from "./tar.ts";
import { tarHeader } from "./tar-header.ts";

const linux = createLinux();
const never = new AbortController().signal;
setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;
const limits = { entries: 1000, bytes: 10_000_000 };

/** Names that meet each other, and ways out. */
const name = fc.constantFrom(
  ...[
    "a",
    "a/b",
    "a/b/c",
    "b",
    "b/c",
    "l",
    "l/x",
    "up/secret",
    "abs/secret",
    "a/.wh.b",
    ".wh.a",
    ".wh..wh..opq",
  ],
  ...["a/.wh..wh..opq", "/b", "../secret", "a/../../secret", ".", "./a/", "up", "abs", ".wh.up", "abs/d"],
);

describe.each(["directory", "erofs"] as const)("hostile layers kept as %s", (form) => {
  let base: string;
  let host: string;
  beforeAll(() => {
    base = mkdtempSync("/tmp/bh-hostile-");
    host = join(base, "host");
    mkdirSync(join(host, "d"), { recursive: true });
    writeFileSync(join(host, "secret"), "host");
  });
  afterAll(() => rmSync(base, { recursive: true }));
  const look = () =>
    execFileSync("find", [host, "-printf", "%p %y %m %U:%G %n %T@ %s\\n"], { encoding: "utf8" }) +
    readFileSync(join(host, "secret"), "utf8");

  /** Unpacks as the worker does; a refusal is as good as a layer. */
  let serial = 0;
  const unpack = (bytes: Uint8Array): string => {
    const path = join(base, `layer-${serial++}`);
    if (form === "directory") mkdirSync(path);
    const tree = form === "erofs" ? createErofsTree(path) : createDirectoryTree(path, linux);
    const applier = createApplier(tree, limits);
    try {
      const reader = createTarReader(applier);
      for (let at = 0; at < bytes.length; at += 700) reader.push(bytes.subarray(at, at + 700));
      reader.finish();
      applier.seal([]);
      return "layer";
    } catch (error) {
      const { code, name: kind } = error as NodeJS.ErrnoException;
      // The kernel's own refusals: of attributes it does not know, names and sizes it cannot keep.
      const isRefusal = [
        "EOPNOTSUPP",
        "EINVAL",
        "ENAMETOOLONG",
        "EFBIG",
        "ERANGE",
        "E2BIG",
        "EPERM",
      ].includes(code ?? "");
      if (kind !== "RuntimeError" && !isRefusal) throw error;
      expect(code).not.toBe("internal");
      return "refused";
    } finally {
      tree.abandon();
      rmSync(path, { recursive: true, force: true });
    }
  };

  test("leave the host as it is, in whatever order their entries come", async () => {
    const before = look();
    const entry = fc.record({
      name,
      type: fc.constantFrom("file", "directory", "symlink", "link", "fifo", "character-device"),
      linkname: fc.oneof(
        name,
        fc.constantFrom(host, "/", "../../../../..", `${host}/secret`, "a", "abs/secret"),
      ),
      mode: fc.constantFrom(0o644, 0o4755, 0),
      uid: fc.constantFrom(0, 7),
    });
    const results = new Set<string>();
    await fc.assert(
      fc.asyncProperty(fc.array(entry, { maxLength: 14 }), async (entries) => {
        const first: LayerEntry[] = [
          { name: "up", type: "symlink", linkname: "../../../../../.." },
          { name: "abs", type: "symlink", linkname: host },
        ];
        const tar = layerTar(...first, ...(entries as LayerEntry[]));
        results.add(unpack(Buffer.concat(await Array.fromAsync(tar))));
        expect(look()).toBe(before);
      }),
      { numRuns: 100 },
    );
    expect([...results].sort()).toEqual(["layer", "refused"]);
  });

  test("made by changing bytes of real archives are layers or refused", () => {
    const tree = join(base, "tree");
    mkdirSync(tree);
    execFileSync(
      "bash",
      ["-c", "mkdir d; echo x > d/f; ln d/f h; ln -s d s; truncate -s 90000 z; echo y >> z; mkfifo p"],
      { cwd: tree },
    );
    const archives = [
      ["--format=gnu"],
      ["--format=gnu", "-S"],
      ["--format=pax", "-S"],
      ["--format=pax", "-S", "--sparse-version=0.1"],
    ].map((options) => execFileSync("tar", [...options, "-C", tree, "-cf", "-", "."]));
    const before = look();
    const change = fc.record({ at: fc.nat(), value: fc.nat(255), mend: fc.boolean() });
    fc.assert(
      fc.property(
        fc.constantFrom(...archives),
        fc.array(change, { minLength: 1, maxLength: 4 }),
        (archive, changes) => {
          const bytes = Buffer.from(archive);
          for (const { at, value, mend } of changes) {
            const place = at % bytes.length;
            bytes[place] = value;
            if (mend) mendChecksum(bytes, place - (place % 512));
          }
          unpack(bytes);
        },
      ),
      { numRuns: 300 },
    );
    expect(look()).toBe(before);
  });
});

test("attributes of a layer kept as erofs are measured as they come, and are the heap's, which has a bound", async () => {
  const path = `/tmp/bh-xattrs-${process.pid}.img`;
  const tree = createErofsTree(path);
  try {
    const applier = createApplier(tree, { entries: 10_000, bytes: 10_000_000 });
    const reader = createTarReader(applier);
    const pack = (name: string, values: number[]) =>
      reader.push(
        tarHeader({
          ...{ name, type: "file", mode: 0o644, uid: 0, gid: 0, size: 0, mtime: 0n },
          xattrs: new Map(values.map((size, n) => [`user.${n}`, Buffer.alloc(size, 1)])),
        }),
      );
    const external = process.memoryUsage().external;
    // Beside each value stands one that a layer never brings, in the same extended header.
    for (let n = 0; n < 300; n++) {
      const xattrs = new Map([["user.a", Buffer.alloc(200)]]);
      xattrs.set("trusted.a", Buffer.alloc(900_000));
      reader.push(
        tarHeader({ name: `f${n}`, type: "file", mode: 0o644, uid: 0, gid: 0, size: 0, mtime: 0n, xattrs }),
      );
    }
    // What is collected is given back by another thread, some time later.
    const kept = () => {
      collect();
      return process.memoryUsage().external - external;
    };
    await expect.poll(kept, { timeout: 30_000 }).toBeLessThan(100_000_000);
    pack("fits", [32_000, 32_000]);
    expect(() => pack("one", [0x10000])).toThrow(/attributes are too large/);
    expect(() => pack("all", [32_000, 33_600])).toThrow(/attributes are too large/);
    expect(() => {
      for (let n = 0; n < 2200; n++) pack(`many${n}`, [32_000, 32_000]);
    }).toThrow(/more than 134217728 bytes/);
  } finally {
    tree.abandon();
    rmSync(path, { force: true });
  }
});

/** So that the change gets past the checksum, where the block is a header. */
const mendChecksum = (bytes: Buffer, at: number): void => {
  if (bytes.toString("latin1", at + 257, at + 262) !== "ustar") return;
  bytes.fill(" ", at + 148, at + 156);
  const sum = bytes.subarray(at, at + 512).reduce((total, byte) => total + byte, 0);
  bytes.write(`${sum.toString(8).padStart(6, "0")}\0`, at + 148);
};

describe.each(["directory", "erofs"] as const)("a disk with layers kept as %s", (form) => {
  test("that is full says so, and keeps nothing of the layer", async () => {
    const root = mkdtempSync("/tmp/bh-full-");
    // Not tmpfs: the kernel mounts no image that is a file on it.
    const disk = `${root}.disk`;
    execFileSync("truncate", ["-s", "5M", disk]);
    execFileSync("mkfs.ext4", ["-q", "-O", "^has_journal", disk]);
    execFileSync("mount", ["-o", "loop", disk, root]);
    try {
      await using snapshots = await overlay(root, linux, { form });
      const large = () =>
        layerTar(
          { name: "a", body: Buffer.alloc(2_600_000, 1) },
          { name: "b", body: Buffer.alloc(2_600_000, 2) },
        );
      await expect(snapshots.extract("sha256:a", undefined, large(), never)).rejects.toMatchObject({
        code: "resource-exhausted",
        message: expect.stringContaining("full"),
      });
      expect(snapshots.has("sha256:a")).toBe(false);
      await vi.waitFor(() => {
        for (const dir of ["staging", "trash", "layers"]) expect(readdirSync(join(root, dir))).toEqual([]);
      }, 30_000);
      await snapshots.extract(
        "sha256:a",
        undefined,
        layerTar({ name: "a", body: Buffer.alloc(2_600_000, 1) }),
        never,
      );
      expect(snapshots.has("sha256:a")).toBe(true);
    } finally {
      execFileSync("umount", ["-l", root]);
      rmSync(root, { recursive: true });
      rmSync(disk);
    }
  });

  test("has nothing of a layer whose daemon was killed in the middle of it", async () => {
    const root = mkdtempSync("/tmp/bh-killed-");
    const program = `
      import { overlay } from ${JSON.stringify(new URL("./overlay.ts", import.meta.url).href)};
      import { createLinux } from ${JSON.stringify(new URL("../linux/linux-ffi.ts", import.meta.url).href)};
      import { layerTar } from ${JSON.stringify(new URL("./conformance-tar.ts", import.meta.url).href)};
      const snapshots = await overlay(${JSON.stringify(root)}, createLinux(), { form: ${JSON.stringify(form)} });
      const never = new AbortController().signal;
      await snapshots.extract("sha256:whole", undefined, layerTar({ name: "f", body: "x" }), never);
      const endless = (async function* () {
        yield* (async function* () { for await (const chunk of layerTar({ name: "a", body: Buffer.alloc(900000, 1) })) yield chunk.subarray(0, 600000); })();
        process.stdout.write("half");
        setInterval(() => {}, 1000);
        await new Promise(() => {});
      })();
      await snapshots.extract("sha256:half", undefined, endless, never);`;
    const file = `${root}.mjs`;
    writeFileSync(file, program);
    const daemon = spawn(process.execPath, [file], { stdio: ["ignore", "pipe", "inherit"] });
    try {
      await once(daemon.stdout, "data");
      expect(readdirSync(join(root, "staging"))).toHaveLength(1);
      daemon.kill("SIGKILL");
      await once(daemon, "exit");
      await using snapshots = await overlay(root, linux, { form });
      expect([snapshots.has("sha256:whole"), snapshots.has("sha256:half")]).toEqual([true, false]);
      await vi.waitFor(() => {
        for (const dir of ["staging", "trash"]) expect(readdirSync(join(root, dir))).toEqual([]);
      }, 30_000);
    } finally {
      daemon.kill("SIGKILL");
      rmSync(root, { recursive: true });
      rmSync(file);
    }
  });
});
