import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { createLinux } from "../linux/linux-ffi.ts";
import { layerTar } from "./conformance-tar.ts";
import { createLayerLabels } from "./labels.ts";
import { overlay } from "./overlay.ts";

/* Without SELinux the kernel stores security.selinux for root as it is, and files made in a directory have none. */

const linux = createLinux();
const never = new AbortController().signal;
const label = "system_u:object_r:container_ro_file_t:s0";
const files = [
  { name: "bin/", type: "directory" as const },
  { name: "bin/sh", body: "#!" },
];

let base: string;
beforeEach(() => {
  base = mkdtempSync("/var/tmp/bh-labels-");
});
afterEach(() => rmSync(base, { recursive: true, force: true }));

const labelOf = (path: string): string | undefined => {
  const value = linux.lgetxattr(path, "security.selinux");
  return value && Buffer.from(value).toString();
};
const setLabel = (path: string, value: string) =>
  linux.lsetxattr(path, "security.selinux", Buffer.from(value));

const layerOf = (root: string): string => {
  const [name] = readdirSync(join(root, "l")).filter((dir) => dir !== "none" && dir !== "void");
  return join(root, "l", name!);
};

test("layers of a time without labels get theirs at the start, and what is made later is made below it", async () => {
  const root = join(base, "snapshots");
  {
    await using snapshots = await overlay(root, linux, { form: "directory" });
    await snapshots.extract("sha256:a", undefined, layerTar(...files), never);
  }
  const layer = layerOf(root);
  for (const path of ["l", "staging"].map((dir) => join(root, dir)).concat(layer, `${layer}/bin/sh`))
    expect(labelOf(path)).toBeUndefined();
  await using _ = await overlay(root, linux, { form: "directory", label });
  expect([labelOf(join(root, "l")), labelOf(join(root, "staging"))]).toEqual([label, label]);
  await vi.waitFor(() => expect(labelOf(layer)).toBe(label), 30_000);
  expect([labelOf(`${layer}/bin`), labelOf(`${layer}/bin/sh`)]).toEqual([label, label]);
  // What the container writes is labelled by its overlay, not here.
  expect(labelOf(join(root, "containers"))).toBeUndefined();
});

test("a layer that lost its label has it before its next use, one of another user's is let be", async () => {
  const root = join(base, "snapshots");
  await using snapshots = await overlay(root, linux, { form: "directory", label });
  await snapshots.extract("sha256:a", undefined, layerTar(...files), never);
  const layer = layerOf(root);
  const target = join(base, "target");
  mkdirSync(target);
  const use = async () => {
    await snapshots.mountReadonly("v", ["sha256:a"], target);
    await snapshots.unmount(target);
    await snapshots.removeContainer("v");
  };
  setLabel(layer, "system_u:object_r:var_lib_t:s0");
  await use();
  expect([labelOf(layer), labelOf(`${layer}/bin/sh`)]).toEqual([label, label]);
  setLabel(layer, "unconfined_u:object_r:container_ro_file_t:s0\0");
  setLabel(`${layer}/bin/sh`, "untouched");
  await use();
  expect(labelOf(`${layer}/bin/sh`)).toBe("untouched");
});

test("a walk that is cut off has not labelled the layer's root, and the next one ends it", async () => {
  const layer = join(base, "layer");
  for (let n = 0; n < 50; n++) mkdirSync(join(layer, `${n}`), { recursive: true });
  const failures: string[] = [];
  let calls = 0;
  const first = createLayerLabels(
    label,
    [],
    {
      ...linux,
      changeXattr: async (...args) => {
        if (++calls === 20) void first.close();
        await linux.changeXattr(...args);
      },
    },
    (reason) => failures.push(reason),
  );
  await first.ensure(layer);
  expect(calls).toBeLessThan(50);
  expect(labelOf(layer)).toBeUndefined();
  const second = createLayerLabels(label, [], linux);
  await Promise.all([second.ensure(layer), second.ensure(layer)]);
  for (const path of [layer, ...readdirSync(layer).map((name) => join(layer, name))])
    expect(labelOf(path)).toBe(label);
  expect(failures).toEqual([]);
});

test("where the label cannot be set the reason is told, and nothing is walked or mounted under it", async () => {
  const root = join(base, "snapshots");
  const reasons: string[] = [];
  const refusing = {
    ...linux,
    lsetxattr: () => {
      throw Object.assign(new Error("lsetxattr: EINVAL"), { code: "EINVAL" });
    },
    changeXattr: () => Promise.reject(new Error("not to be called")),
  };
  await using snapshots = await overlay(root, refusing, {
    form: "auto",
    label,
    onUnlabelled: (reason) => reasons.push(reason),
  });
  await snapshots.extract("sha256:a", undefined, layerTar(...files), never);
  const target = join(base, "target");
  mkdirSync(target);
  await snapshots.mountContainer("c", ["sha256:a"], target);
  await snapshots.unmount(target);
  await snapshots.removeContainer("c");
  expect(reasons).toEqual(["lsetxattr: EINVAL"]);
});

test("a failed walk is told and does not stop who uses the layer", async () => {
  const layer = join(base, "layer");
  mkdirSync(layer);
  const reasons: string[] = [];
  const refusing = { ...linux, changeXattr: () => Promise.reject(new Error("EACCES")) };
  await createLayerLabels(label, [], refusing, (reason) => reasons.push(reason)).ensure(layer);
  expect(reasons).toEqual([`Cannot relabel "${layer}": EACCES`]);
});
