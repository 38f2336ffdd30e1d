import { execFileSync } from "node:child_process";
import {
  createReadStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { MountFlags } from "../linux/linux.ts";
import { createLinux } from "../linux/linux-ffi.ts";
import { snapshotterConformance } from "./conformance.ts";
import { layerTar } from "./conformance-tar.ts";
import { overlay } from "./overlay.ts";

const linux = createLinux();
const never = new AbortController().signal;

snapshotterConformance("overlay", (root) => overlay(root, linux, { form: "directory" }));
snapshotterConformance("erofs", (root) => overlay(root, linux, { form: "erofs" }));

describe("overlay()", () => {
  let base: string;
  beforeAll(() => {
    base = mkdtempSync("/tmp/bh-overlay-");
  });
  afterAll(() => rmSync(base, { recursive: true }));
  const fresh = (name: string) => {
    const path = join(base, name);
    mkdirSync(path);
    return path;
  };

  test("what cannot be read at a start stays: a running container may stand on it", async () => {
    const root = fresh("unreadable");
    const open = () => overlay(root, linux, { form: "directory" });
    const path = fresh("unreadable-target");
    {
      await using snapshots = await open();
      await snapshots.extract("sha256:u", undefined, layerTar({ name: "x" }), never);
      await snapshots.mountContainer("c", ["sha256:u"], path);
    }
    try {
      writeFileSync(join(path, "written"), "by the container");
      const records = [join(root, "layers", "sha256%3Au.json"), join(root, "containers", "c", "stand.json")];
      // A directory in its place is what can be neither read nor parsed.
      const texts = records.map((record) => readFileSync(record));
      for (const record of records) {
        rmSync(record);
        mkdirSync(record);
      }
      {
        await using _ = await open();
      }
      expect(readFileSync(join(path, "written"), "utf8")).toBe("by the container");
      expect(readdirSync(join(root, "l")).length).toBe(3);
      for (const [n, record] of records.entries()) {
        rmdirSync(record);
        writeFileSync(record, texts[n]!);
      }
      await using snapshots = await open();
      expect(snapshots.has("sha256:u")).toBe(true);
      expect((await snapshots.usage("c")).inodes).toBeGreaterThan(0n);
    } finally {
      await linux.umount(path, MountFlags.DETACH);
    }
  });

  test("takes a tar of GNU tar's with capabilities, attributes and names that are no UTF-8", async () => {
    const source = fresh("source");
    const strange = Buffer.from([0x63, 0x61, 0x66, 0xe9]);
    writeFileSync(join(source, "ping"), "elf");
    writeFileSync(Buffer.concat([Buffer.from(`${source}/`), strange]), "latin1");
    linux.lsetxattr(join(source, "ping"), "user.note", Buffer.from([0, 10, 61, 255]));
    execFileSync("setcap", ["cap_net_raw+ep", join(source, "ping")]);
    // An attribute that would steer overlayfs if it were let through.
    linux.lsetxattr(source, "trusted.overlay.redirect", Buffer.from("/etc"));
    const capability = linux.lgetxattr(join(source, "ping"), "security.capability");
    const tar = join(base, "gnu.tar");
    execFileSync("tar", ["--xattrs", "--xattrs-include=*", "--format=pax", "-C", source, "-cf", tar, "."]);

    const root = fresh("gnu");
    await using snapshots = await overlay(root, linux, { form: "directory" });
    await snapshots.extract("sha256:a", undefined, createReadStream(tar), never);
    const path = fresh("gnu-target");
    await snapshots.mountContainer("c", ["sha256:a"], path);
    try {
      expect(capability).toBeDefined();
      expect(linux.lgetxattr(join(path, "ping"), "security.capability")).toEqual(capability);
      expect(linux.lgetxattr(join(path, "ping"), "user.note")).toEqual(new Uint8Array([0, 10, 61, 255]));
      expect(readFileSync(Buffer.concat([Buffer.from(`${path}/`), strange]), "utf8")).toBe("latin1");
      const [layer] = readdirSync(join(root, "l")).filter((name) => name !== "none" && name !== "void");
      expect(linux.lgetxattr(join(root, "l", layer!), "trusted.overlay.redirect")).toBeUndefined();
    } finally {
      await snapshots.unmount(path);
    }
  });

  test("drops at start what was half made, and layers that a power cut may have taken", async () => {
    const root = fresh("restart");
    {
      await using snapshots = await overlay(root, linux, { form: "directory" });
      await snapshots.extract("sha256:a", undefined, layerTar({ name: "f" }), never);
      await snapshots.extract("sha256:b", undefined, layerTar({ name: "f" }), never);
    }
    const record = (id: string) => join(root, "layers", `${encodeURIComponent(id)}.json`);
    const b = JSON.parse(readFileSync(record("sha256:b"), "utf8"));
    expect(b.synced).toBe(true);
    writeFileSync(record("sha256:b"), JSON.stringify({ ...b, boot: "another", synced: false }));
    for (const dir of ["l/zz", "staging/9", "trash/old"])
      mkdirSync(join(root, dir, "x"), { recursive: true });
    writeFileSync(join(root, "layers", "torn.json"), "{");
    mkdirSync(join(root, "containers/old/upper"), { recursive: true });
    await using snapshots = await overlay(root, linux, { form: "directory" });
    expect([snapshots.has("sha256:a"), snapshots.has("sha256:b")]).toEqual([true, false]);
    await vi.waitFor(() => {
      expect(readdirSync(join(root, "l")).sort()).toHaveLength(3);
      for (const dir of ["staging", "trash", "containers"]) expect(readdirSync(join(root, dir))).toEqual([]);
    }, 30_000);
    expect(readdirSync(join(root, "layers"))).toEqual(["sha256%3Aa.json"]);
  });

  test("stops at its limits", async () => {
    const limits = { entries: 3, bytes: 10_000 };
    await using snapshots = await overlay(fresh("limits"), linux, { limits });
    const many = layerTar(...["a", "b", "c", "d"].map((name) => ({ name })));
    await expect(snapshots.extract("sha256:a", undefined, many, never)).rejects.toMatchObject({
      code: "resource-exhausted",
    });
    const large = layerTar({ name: "a", body: "x".repeat(6000) }, { name: "b", body: "x".repeat(6000) });
    await expect(snapshots.extract("sha256:a", undefined, large, never)).rejects.toMatchObject({
      code: "resource-exhausted",
    });
  });

  test("measures and removes a tree deeper than any path", async () => {
    const root = fresh("deep");
    await using snapshots = await overlay(root, linux, { form: "directory" });
    const path = fresh("deep-target");
    await snapshots.mountContainer("c", [], path);
    execFileSync(
      "python3",
      [
        "-c",
        "import os\nfor _ in range(60):\n os.mkdir('d'*200); os.chdir('d'*200)\nopen('f','w').write('x'*9000)",
      ],
      { cwd: path },
    );
    expect((await snapshots.usage("c")).inodes).toBe(62n);
    await snapshots.unmount(path);
    await snapshots.removeContainer("c");
    await vi.waitFor(() => expect(readdirSync(join(root, "trash"))).toEqual([]), 30_000);
    expect(existsSync(join(root, "containers/c"))).toBe(false);
  });

  test("mounts a root again after a kill, though the first mount was volatile", async () => {
    const root = fresh("volatile");
    await using snapshots = await overlay(root, linux, { form: "directory" });
    const path = fresh("volatile-target");
    await snapshots.mountContainer("c", [], path);
    expect(readFileSync("/proc/self/mounts", "utf8")).toMatch(new RegExp(`${path} overlay .*volatile`));
    await linux.umount(path, 0);
    expect(existsSync(join(root, "containers/c/work/work/incompat/volatile"))).toBe(true);
    await snapshots.mountContainer("c", [], path);
    await snapshots.unmount(path);
  });
});
