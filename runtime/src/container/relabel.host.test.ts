import {
  chmodSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { MountFlags } from "../linux/linux.ts";
import { createLinux } from "../linux/linux-ffi.ts";
import { relabel } from "./relabel.ts";

/* Without SELinux the kernel stores security.selinux for root as it is. */

const linux = createLinux();
const signal = AbortSignal.timeout(60_000);
const label = "system_u:object_r:container_file_t:s0:c1,c2";

let base: string;
beforeEach(() => {
  base = mkdtempSync("/var/tmp/bh-relabel-");
});
afterEach(() => rmSync(base, { recursive: true, force: true }));

const labelOf = (path: string | Uint8Array): string | undefined => {
  const value = linux.lgetxattr(path, "security.selinux");
  return value && Buffer.from(value).toString();
};

const tree = () => {
  const [volume, outside] = [join(base, "volume"), join(base, "outside")];
  mkdirSync(join(volume, "a/b"), { recursive: true });
  mkdirSync(outside);
  writeFileSync(join(outside, "secret"), "");
  writeFileSync(join(volume, "a/b/file"), "");
  symlinkSync(outside, join(volume, "a/out"));
  return { volume, outside };
};

test("a directory and all below it get the label, links themselves and not what they lead to", async () => {
  const { volume, outside } = tree();
  const strange = Buffer.concat([Buffer.from(`${volume}/a/caf`), Buffer.from([0xe9])]);
  writeFileSync(strange, "");
  await relabel(volume, label, linux, signal);
  for (const path of [
    volume,
    `${volume}/a`,
    `${volume}/a/b`,
    `${volume}/a/b/file`,
    `${volume}/a/out`,
    strange,
  ])
    expect(labelOf(path)).toBe(label);
  expect(labelOf(outside)).toBeUndefined();
  expect(labelOf(join(outside, "secret"))).toBeUndefined();
});

test("a file is labelled, also through a link to it", async () => {
  const { volume } = tree();
  symlinkSync(join(volume, "a/b/file"), join(base, "link"));
  await relabel(join(base, "link"), label, linux, signal);
  expect(labelOf(join(volume, "a/b/file"))).toBe(label);
  expect(labelOf(volume)).toBeUndefined();
});

test("what is mounted inside stays as it is", async () => {
  const { volume } = tree();
  const inside = join(volume, "a/b");
  await linux.mount("other", inside, "tmpfs", 0, "");
  try {
    writeFileSync(join(inside, "other"), "");
    await relabel(volume, label, linux, signal);
    expect(labelOf(join(volume, "a"))).toBe(label);
    expect(labelOf(inside)).toBeUndefined();
    expect(labelOf(join(inside, "other"))).toBeUndefined();
  } finally {
    await linux.umount(inside, MountFlags.DETACH);
  }
});

test("a directory that becomes a link while the walk is in it does not lead it out", async () => {
  const { volume, outside } = tree();
  for (let n = 0; n < 50; n++) writeFileSync(join(volume, `a/b/${n}`), "");
  linkSync(join(volume, "a/b/file"), join(outside, "0"));
  for (let n = 1; n < 50; n++) writeFileSync(join(outside, `${n}`), "");
  let calls = 0;
  await relabel(
    volume,
    label,
    {
      changeXattr: async (...args) => {
        // At the third file of a/b the pod puts a link to elsewhere in its place.
        if (++calls === 3) {
          renameSync(join(volume, "a/b"), join(volume, "moved"));
          symlinkSync(outside, join(volume, "a/b"));
        }
        await linux.changeXattr(...args);
      },
    },
    signal,
  );
  expect(calls).toBeGreaterThan(50);
  for (let n = 1; n < 50; n++) expect(labelOf(join(outside, `${n}`))).toBeUndefined();
  expect(labelOf(join(volume, "moved/7"))).toBe(label);
});

test("a file system that keeps no labels is let be, the node's own directories are refused", async () => {
  await relabel("/proc/self/status", label, linux, signal);
  await expect(relabel("/usr", label, linux, signal)).rejects.toThrow('Cannot relabel "/usr"');
  symlinkSync("/etc", join(base, "etc"));
  await expect(relabel(join(base, "etc"), label, linux, signal)).rejects.toThrow('Cannot relabel "/etc"');
});

test("a caller that gives up ends the walk", async () => {
  const { volume } = tree();
  chmodSync(volume, 0o700);
  await expect(relabel(volume, label, linux, AbortSignal.abort(new Error("enough")))).rejects.toThrow(
    "enough",
  );
  expect(labelOf(volume)).toBeUndefined();
});
