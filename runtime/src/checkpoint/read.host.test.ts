import { execFileSync } from "node:child_process";
import {
  appendFile,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import fc from "fast-check";
import { type Header, pack } from "tar-stream";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { bounds, takeArchive, takeDirectory, takePod } from "./read.ts";

/** Checkpoints of every hostile kind give away nothing: of each is taken what was asked for, or it is refused in words. */

type Entry = Partial<Header> & { name: string; data?: string | Buffer };

const imageId = `sha256:${"a".repeat(64)}`;
const config = { name: "config.dump", data: JSON.stringify({ id: "x", rootfsImageRef: imageId }) };
const image = { name: "checkpoint/checkpoint.img", data: "memory" };
const signal = () => AbortSignal.timeout(20_000);

let dir: string;
let into: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "bh-read-"));
  into = join(dir, "into");
  await mkdir(into, { mode: 0o700 });
});
afterEach(() => rm(dir, { recursive: true, force: true }));

const archiveOf = async (...entries: Entry[]): Promise<string> => {
  const tar = pack();
  for (const { data, ...header } of entries) tar.entry(header, data ?? "");
  tar.finalize();
  const parts: Buffer[] = [];
  for await (const part of tar) parts.push(part as Buffer);
  const path = join(dir, "archive.tar");
  await writeFile(path, Buffer.concat(parts));
  return path;
};
const files = async (at = into): Promise<string[]> =>
  (await readdir(at, { recursive: true, withFileTypes: true }))
    .filter((entry) => !entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name).slice(at.length + 1))
    .sort();

test("of an archive the memory image and the image's ID are taken, and nothing else", async () => {
  const path = await archiveOf(
    { name: "spec.dump", data: '{"mounts":[{"source":"/","destination":"/host"}]}' },
    { name: "rootfs-diff.tar", data: "x" },
    { ...config, name: "./config.dump", mode: 0o4777, uid: 1000 },
    { ...image, name: "./checkpoint/checkpoint.img", mode: 0o4777, uid: 1000 },
    { name: "checkpoint/gcs_opts.json", data: "{}" },
    { name: "bind.mounts", data: "[]" },
    { name: "network.status", data: "{}" },
  );
  const taken = await takeArchive(path, into, "gvisor", signal());
  expect(taken.config).toEqual({ id: "x", rootfsImageRef: imageId, rootfsImageName: "" });
  expect(await files()).toEqual(["image/checkpoint.img"]);
  const { mode, uid } = await stat(join(taken.images, "checkpoint.img"));
  expect([mode & 0o7777, uid]).toEqual([0o600, 0]);
});

test.each<[string, Entry[], string]>([
  [
    "a link to a file of the node",
    [config, { ...image, data: "", type: "symlink", linkname: "/etc/shadow" }],
    "not a plain file",
  ],
  [
    "a hard link to a file of the node",
    [config, { ...image, data: "", type: "link", linkname: "/etc/shadow" }],
    "not a plain file",
  ],
  [
    "a device",
    [config, { ...image, data: "", type: "block-device", devmajor: 8, devminor: 0 }],
    "not a plain file",
  ],
  ["a FIFO", [config, { ...image, data: "", type: "fifo" }], "not a plain file"],
  [
    "config.dump as a link",
    [{ name: "config.dump", type: "symlink", linkname: "/etc/passwd" }, image],
    "not a plain file",
  ],
  ["a file twice", [config, image, image], "twice"],
  ["no config.dump", [image], "has no config.dump"],
  ["no memory image", [config], "has no checkpoint/checkpoint.img"],
  ["CRIU's image", [config, { name: "checkpoint/inventory.img", data: "x" }], "CRIU"],
  [
    "a config.dump that is too large",
    [{ name: "config.dump", data: Buffer.alloc(bounds.dump + 1) }, image],
    "larger than",
  ],
  ["a config.dump that is not JSON", [{ name: "config.dump", data: "{" }, image], "not JSON"],
  [
    "an image that is named and not an ID (CVE-2026-50195)",
    [
      { name: "config.dump", data: JSON.stringify({ rootfsImageRef: "docker.io/library/busybox:latest" }) },
      image,
    ],
    "must be the digest",
  ],
])("an archive with %s is refused in words", async (_, entries, words) => {
  await expect(takeArchive(await archiveOf(...entries), into, "gvisor", signal())).rejects.toThrow(words);
});

test.each(["../escape", "/etc/bulkhead-escape", "checkpoint/../../escape", "checkpoint/x/checkpoint.img"])(
  "an entry %s goes nowhere, and a directory that is a link leads nowhere",
  async (name) => {
    const path = await archiveOf(
      config,
      { name: "checkpoint", type: "symlink", linkname: "/etc" },
      { name: "image", type: "symlink", linkname: "/etc" },
      { name, data: "escape" },
      image,
    );
    await takeArchive(path, into, "gvisor", signal());
    expect(await files()).toEqual(["image/checkpoint.img"]);
    expect((await readdir(dir)).sort()).toEqual(["archive.tar", "into"]);
    expect(await readdir("/etc")).not.toContain("bulkhead-escape");
  },
);

test("an image of more than the bound is refused before a byte of it is written", async () => {
  // A header that promises, in GNU's way of writing large numbers, with nothing behind it.
  const bytes = await readFile(await archiveOf(config, image));
  const at = bytes.indexOf("checkpoint/checkpoint.img");
  bytes.writeUInt32BE(0x80000000, at + 124);
  bytes.writeBigUInt64BE(BigInt(bounds.images) + 1n, at + 128);
  bytes.write("        ", at + 148, "latin1");
  const sum = bytes.subarray(at, at + 512).reduce((all, byte) => all + byte, 0);
  bytes.write(`${sum.toString(8).padStart(6, "0")}\0 `, at + 148, "latin1");
  const path = join(dir, "promise.tar");
  await writeFile(path, bytes);
  await expect(takeArchive(path, into, "gvisor", signal())).rejects.toThrow(/larger than|no room/);
  expect(await files()).toEqual([]);
});

describe("CRIU's", () => {
  const criu = [
    config,
    ...["inventory.img", "core-1.img", "tmpfs-dev-73.tar.gz.img", "descriptors.json"].map((name) => ({
      name: `checkpoint/${name}`,
      data: name,
    })),
    { name: "rootfs-diff.tar", data: "changes" },
  ];
  const beside = ["config.json", ".hidden.img", "a/b.img", "../x.img", "parent", "dump.log", "x.img\nsh"];

  test("memory image and the root file system's changes are taken of an archive, and nothing else", async () => {
    const others = beside.map((name) => ({ name: `checkpoint/${name}`, data: "x" }));
    const parent = { name: "checkpoint/parent", type: "symlink" as const, linkname: "/etc" };
    const path = await archiveOf(...others, parent, ...criu, { name: "spec.dump", data: "{}" });
    const taken = await takeArchive(path, into, "criu", signal());
    expect(taken.changes).toBe(join(into, "rootfs-diff.tar"));
    const parts = ["core-1.img", "descriptors.json", "inventory.img", "tmpfs-dev-73.tar.gz.img"];
    const all = [...parts.map((name) => `image/${name}`), "rootfs-diff.tar"];
    expect(await files()).toEqual(all);
  });

  test("are taken of an image's files by name too", async () => {
    const root = join(dir, "root");
    await mkdir(join(root, "checkpoint"), { recursive: true });
    for (const { name, data } of criu) await writeFile(join(root, name), data);
    await symlink("/etc", join(root, "checkpoint/parent"));
    const taken = await takeDirectory(root, into, "criu", signal());
    expect((await files()).length).toBe(5);
    expect(await readFile(taken.changes ?? "", "utf8")).toBe("changes");
    await rm(into, { recursive: true });
    await mkdir(into);
    await symlink("/etc/shadow", join(root, "checkpoint/core-2.img"));
    await expect(takeDirectory(root, into, "criu", signal())).rejects.toThrow(
      "core-2.img is not a plain file",
    );
  });

  test.each<[string, Entry[], string]>([
    [
      "a part that is a link",
      [...criu, { name: "checkpoint/core-2.img", type: "symlink", linkname: "/etc/shadow" }],
      "not a plain file",
    ],
    [
      "changes that are a link",
      [...criu.slice(0, -1), { name: "rootfs-diff.tar", type: "link", linkname: "/etc/shadow" }],
      "not a plain file",
    ],
    ["changes twice", [...criu, ...criu.slice(-1)], "twice"],
    [
      "no inventory",
      criu.filter(({ name }) => !name.includes("inventory")),
      "has no checkpoint/inventory.img",
    ],
    [
      "no descriptors",
      criu.filter(({ name }) => !name.includes("descriptors")),
      "has no checkpoint/descriptors",
    ],
    ["gVisor's image", [config, image], "it is gVisor's memory image"],
  ])("archive with %s is refused in words", async (_, entries, words) => {
    await expect(takeArchive(await archiveOf(...entries), into, "criu", signal())).rejects.toThrow(words);
  });
});

test.each(["gvisor", "criu"] as const)(
  "an archive of more entries than the bound is refused (%s)",
  async (kind) => {
    const header = (await readFile(await archiveOf({ name: "checkpoint/nothing" }))).subarray(0, 512);
    const path = join(dir, "many.tar");
    const many = Buffer.concat(Array.from({ length: 1000 }, () => header));
    await writeFile(path, "");
    for (let written = 0; written < bounds.entries; written += 1000) await appendFile(path, many);
    await expect(takeArchive(path, into, kind, signal())).rejects.toThrow("it has no config.dump");
    await rm(join(into, "image"), { recursive: true });
    await appendFile(path, header);
    await expect(takeArchive(path, into, kind, signal())).rejects.toThrow(
      `more than ${bounds.entries} entries`,
    );
  },
);

test("a FIFO, a directory, a link and what is not there are not read", async () => {
  execFileSync("mkfifo", [join(dir, "fifo")]);
  await symlink("/etc/passwd", join(dir, "link"));
  await expect(takeArchive(join(dir, "fifo"), into, "gvisor", signal())).rejects.toThrow(
    "not a regular file",
  );
  await expect(takeArchive(dir, into, "gvisor", signal())).rejects.toThrow("not a regular file");
  await expect(takeArchive(join(dir, "link"), into, "gvisor", signal())).rejects.toThrow("ELOOP");
  await expect(takeArchive(join(dir, "nothing"), into, "gvisor", signal())).rejects.toThrow("ENOENT");
});

test("archives with any bytes changed, cut or added are read or refused in words", async () => {
  const good = await readFile(await archiveOf(config, image, { name: "spec.dump", data: "{}" }));
  let round = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { maxLength: 8 }),
      fc.nat(good.length),
      async (changes, cut) => {
        const bytes = Buffer.from(good.subarray(0, good.length - (cut % 3 === 0 ? cut : 0)));
        for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value;
        const path = join(dir, "mutated.tar");
        await writeFile(path, bytes);
        const target = join(dir, `into-${round++}`);
        await mkdir(target);
        const outcome = await takeArchive(path, target, "gvisor", signal()).catch((error: unknown) => error);
        if (outcome instanceof Error) expect(outcome).toBeInstanceOf(RuntimeError);
        for (const name of await files(target))
          expect(name).toMatch(/^image\/(checkpoint|pages|pages_meta)\.img$/);
      },
    ),
    { numRuns: 300 },
  );
});

describe("the files of a checkpoint image", () => {
  let root: string;
  beforeEach(async () => {
    root = join(dir, "root");
    await mkdir(join(root, "checkpoint"), { recursive: true });
    await writeFile(join(root, "config.dump"), config.data);
    await writeFile(join(root, "checkpoint/checkpoint.img"), "memory");
    await writeFile(join(root, "checkpoint/gcs_opts.json"), "{}");
    await writeFile(join(root, "spec.dump"), "{}");
  });

  test("are taken by name", async () => {
    await takeDirectory(root, into, "gvisor", signal());
    expect(await files()).toEqual(["image/checkpoint.img"]);
  });

  test.each(["checkpoint/checkpoint.img", "checkpoint/pages.img", "config.dump", "checkpoint"])(
    "%s as a link to the node is refused",
    async (name) => {
      await rm(join(root, name), { recursive: true, force: true });
      await symlink(name === "checkpoint" ? "/etc" : "/etc/passwd", join(root, name));
      await expect(takeDirectory(root, into, "gvisor", signal())).rejects.toThrow(/is not a plain/);
    },
  );

  test("a device or a FIFO in place of a file is refused without waiting", async () => {
    await rm(join(root, "checkpoint/checkpoint.img"));
    execFileSync("mkfifo", [join(root, "checkpoint/checkpoint.img")]);
    await expect(takeDirectory(root, into, "gvisor", signal())).rejects.toThrow("is not a plain file");
  });

  test("a memory image larger than the bound is refused, were it sparse or not", async () => {
    await truncate(join(root, "checkpoint/checkpoint.img"), bounds.images + 1);
    await expect(takeDirectory(root, into, "gvisor", signal())).rejects.toThrow(/larger than|no room/);
    expect(await files()).toEqual([]);
  });
});

test("a pod's checkpoint that names files elsewhere has them read from nowhere", async () => {
  const root = join(dir, "pod");
  await mkdir(join(root, "checkpoint"), { recursive: true });
  await writeFile(join(root, "checkpoint/checkpoint.img"), "memory");
  const dump = (names: string[]) =>
    writeFile(
      join(root, "pod.dump"),
      JSON.stringify({
        version: 1,
        handler: "gvisor",
        checkpointedTime: "",
        containers: [{ name: "main", id: "x", rootfsImageRef: "", rootfsImageName: "" }],
        files: Object.fromEntries(names.map((name) => [name, { size: 6, sha256: "0".repeat(64) }])),
      }),
    );
  await dump(["../../etc/passwd", "/etc/passwd", "checkpoint/../pod.dump"]);
  await expect(takePod(root, into, signal())).rejects.toThrow("has no checkpoint/checkpoint.img");
  expect(await files()).toEqual([]);
  await rm(join(into, "image"), { recursive: true });
  await dump(["checkpoint/checkpoint.img"]);
  await expect(takePod(root, into, signal())).rejects.toThrow("is not what pod.dump says");
});
