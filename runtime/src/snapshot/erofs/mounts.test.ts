import { existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { createImageMounts } from "./mounts.ts";

/* The kernel's answers are given here: one without SELinux refuses the option, and one with it is not at hand. */

const label = "system_u:object_r:container_ro_file_t:s0";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "bh-images-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const recording = (labels: Record<string, string> = {}) => {
  const calls: string[] = [];
  const linux = {
    mount: async (...[source, target, type, , data]: [string, string, string, number, string]) =>
      void calls.push(`mount ${source} ${target} ${type} ${data}`),
    umount: async (target: string) => void calls.push(`umount ${target}`),
    statfs: () => ({ type: 0 }) as never,
    lgetxattr: (path: string | Uint8Array) => {
      const found = labels[String(path)];
      return found === undefined ? undefined : Buffer.from(found);
    },
  };
  return { calls, linux };
};

test("an image's files are shown under the label of what containers read", async () => {
  const { calls, linux } = recording();
  await createImageMounts(dir, linux, label).mount("1", "/l/1");
  expect(calls).toEqual([`mount /l/1 ${dir}/1 erofs context="${label}"`]);
});

test("without a label nothing is asked of the kernel", async () => {
  const { calls, linux } = recording();
  const images = createImageMounts(dir, linux, undefined);
  await images.mount("1", "/l/1");
  await images.sweep(new Set(["1"]));
  expect(calls).toEqual([`mount /l/1 ${dir}/1 erofs `]);
});

test("what an earlier version mounted under another label goes at the start, and what is right stays", async () => {
  for (const name of ["right", "other", "none", "idle"]) mkdirSync(join(dir, name));
  const { calls, linux } = recording({
    [`${dir}/right`]: "unconfined_u:object_r:container_ro_file_t:s0\0",
    [`${dir}/other`]: "system_u:object_r:unlabeled_t:s0\0",
    [`${dir}/idle`]: `${label}\0`,
  });
  await createImageMounts(dir, linux, label).sweep(new Set(["right", "other", "none"]));
  expect(calls.toSorted()).toEqual([`umount ${dir}/idle`, `umount ${dir}/none`, `umount ${dir}/other`]);
  expect(existsSync(join(dir, "right"))).toBe(true);
});
