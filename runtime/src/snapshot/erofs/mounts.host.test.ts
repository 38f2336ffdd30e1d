import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { MountFlags } from "../../linux/linux.ts";
import { createLinux } from "../../linux/linux-ffi.ts";
import { MAGIC } from "./format.ts";
import { createImageMounts } from "./mounts.ts";

/* Real mounts, of tmpfs in place of EROFS, which most kernels do not mount from a file. They take their time. */

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "bh-images-"));
});
afterEach(() => {
  while (mounted() > 0) execFileSync("umount", [join(dir, "1")]);
  rmSync(dir, { recursive: true, force: true });
});

const real = createLinux();
const mounted = (): number =>
  readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .filter((line) => line.split(" ")[4] === join(dir, "1")).length;
const slow = {
  async mount(_source: string, target: string) {
    await sleep(50);
    await real.mount("tmpfs", target, "tmpfs", MountFlags.RDONLY, "");
  },
  async umount(...args: Parameters<typeof real.umount>) {
    await sleep(50);
    await real.umount(...args);
  },
  statfs: (path: string) => ({ ...real.statfs(path), type: MAGIC }),
  lgetxattr: () => undefined,
};

test("an image that two ask for at the same moment is mounted once, and taken down whole", async () => {
  const images = createImageMounts(dir, slow, undefined);
  await Promise.all([images.mount("1", "/l/1"), images.mount("1", "/l/1")]);
  expect(mounted()).toBe(1);
  await images.unmount("1");
  expect(mounted()).toBe(0);
});

test("who asks for an image while it is taken down gets it mounted", async () => {
  const images = createImageMounts(dir, slow, undefined);
  await images.mount("1", "/l/1");
  await Promise.all([images.unmount("1"), images.mount("1", "/l/1")]);
  expect(mounted()).toBe(1);
});

test("what has come to be used again stays", async () => {
  const images = createImageMounts(dir, slow, undefined);
  await images.mount("1", "/l/1");
  images.release("1", () => true);
  await images.close(() => true);
  expect(mounted()).toBe(1);
});
