import { mkdir, mkdtemp, rm, statfs, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { ensureTestImages } from "../images/build.ts";
import { startRegistry } from "../images/registry.ts";
import { run } from "../tools/run.ts";
import { createDaemon, type Daemon, remains } from "./daemon.ts";

/** Images on one disk, what containers write on another: what the kubelet is told of both is what the disks say. */

const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
const unused = "registry.k8s.io/e2e-test-images/nginx:1.14-2";
const undo = new AsyncDisposableStack();
let daemon: Daemon;
let containers: string;
let images: string;

beforeAll(async () => {
  const dir = await mkdtemp(join(tmpdir(), "bh-two-disks-"));
  undo.defer(() => rm(dir, { recursive: true, force: true }));
  const registry = undo.use(await startRegistry({ dir }));
  await ensureTestImages(registry.host);
  daemon = undo.use(await createDaemon({ registry: registry.host, subnet: 90 }));
  images = join(daemon.root, "snapshots");
  containers = join(images, "containers");
  // The daemon's own undo takes mounts below its root away.
  for (const [name, at] of Object.entries({ images, containers })) {
    await mkdir(at, { recursive: true });
    // Not tmpfs, which counts an inode for each name of a file.
    await run(["mke2fs", "-q", "-t", "ext4", join(dir, name), "256M"]);
    await run(["mount", "-o", "loop", join(dir, name), at]);
  }
  await daemon.start();
});
afterAll(() => undo.disposeAsync());

/** What of a disk is taken, by the disk itself. */
const taken = async (at: string): Promise<{ bytes: number; inodes: number }> => {
  const { blocks, bfree, bsize, files, ffree } = await statfs(at);
  return { bytes: (blocks - bfree) * bsize, inodes: files - ffree };
};

type Filesystem = {
  fsId: { mountpoint: string };
  usedBytes: { value: string };
  inodesUsed: { value: string };
};
const told = async () => {
  const { status } = JSON.parse(await daemon.crictl("imagefsinfo", "-o", "json")) as {
    status: { imageFilesystems: Filesystem[]; containerFilesystems: Filesystem[] };
  };
  const of = ([each]: Filesystem[]) => ({
    mountpoint: each?.fsId.mountpoint ?? "",
    bytes: Number(each?.usedBytes.value),
    inodes: Number(each?.inodesUsed.value),
  });
  return { images: of(status.imageFilesystems), containers: of(status.containerFilesystems) };
};
const deviceOf = async (path: string) => (await run(["stat", "-c", "%d", path])).trim();

test("ImageFsInfo names both disks, and says what each of them says of itself", async () => {
  const empty = { images: await taken(images), containers: await taken(containers) };
  const grown = async (disk: "images" | "containers") => {
    const now = await taken({ images, containers }[disk]);
    return { bytes: now.bytes - empty[disk].bytes, inodes: now.inodes - empty[disk].inodes };
  };
  /** Records, and directories of the snapshotter's own, are not counted. */
  const near = async (disk: "images" | "containers", spare: { bytes: number; inodes: number }) => {
    const [says, is] = [(await told())[disk], await grown(disk)];
    expect(Math.abs(is.bytes - says.bytes), `${disk}: ${is.bytes} bytes, told ${says.bytes}`).toBeLessThan(
      spare.bytes,
    );
    expect(
      Math.abs(is.inodes - says.inodes),
      `${disk}: ${is.inodes} inodes, told ${says.inodes}`,
    ).toBeLessThan(spare.inodes);
  };
  await daemon.crictl("pull", busybox);
  await daemon.crictl("pull", unused);
  const before = await told();
  expect(await deviceOf(before.images.mountpoint)).toBe(await deviceOf(images));
  expect(await deviceOf(before.containers.mountpoint)).toBe(await deviceOf(containers));
  expect(before.images.bytes).toBeGreaterThan(1_000_000);
  await near("images", { bytes: 200_000, inodes: 30 });
  expect(before.containers).toMatchObject({ bytes: 0, inodes: 0 });

  const [pod, container] = [join(daemon.state, "../pod.json"), join(daemon.state, "../container.json")];
  await writeFile(pod, JSON.stringify({ metadata: { name: "disks", namespace: "d", uid: "d", attempt: 0 } }));
  await writeFile(
    container,
    JSON.stringify({
      metadata: { name: "main", attempt: 0 },
      image: { image: busybox },
      command: [
        "sh",
        "-c",
        "dd if=/dev/zero of=/file bs=1M count=40; mkdir /d; for i in $(seq 300); do : >/d/$i; done; sleep 3600",
      ],
    }),
  );
  const id = (await daemon.crictl("runp", pod)).trim();
  const of = (await daemon.crictl("create", id, container, pod)).trim();
  await daemon.crictl("start", of);
  // What a container has written is measured every ten seconds.
  await vi.waitFor(() => near("containers", { bytes: 100_000, inodes: 10 }), {
    timeout: 30_000,
    interval: 1000,
  });
  const after = await told();
  expect(after.containers.bytes).toBeGreaterThanOrEqual(40 << 20);
  expect(after.containers.inodes).toBeGreaterThan(300);
  await near("images", { bytes: 200_000, inodes: 30 });
  const stats = JSON.parse(await daemon.crictl("stats", "-o", "json", "--id", of)) as {
    stats: { writableLayer: Filesystem }[];
  };
  const layer = stats.stats[0]?.writableLayer;
  expect(await deviceOf(layer?.fsId.mountpoint ?? "")).toBe(await deviceOf(containers));
  expect(Number(layer?.usedBytes.value)).toBe(after.containers.bytes);

  // What goes comes back on the disk that it was on.
  await daemon.crictl("rmp", "-f", id);
  await daemon.crictl("rmi", unused);
  await vi.waitFor(async () => expect((await grown("containers")).bytes).toBeLessThan(100_000), {
    timeout: 40_000,
  });
  expect((await told()).containers).toMatchObject({ bytes: 0, inodes: 0 });
  await vi.waitFor(() => near("images", { bytes: 200_000, inodes: 30 }), { timeout: 40_000 });
  expect((await told()).images.bytes).toBeLessThan(before.images.bytes);
  expect(await remains(daemon)).toEqual([]);
});
