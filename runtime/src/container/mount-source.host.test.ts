import { mkdtemp, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { hungDisk } from "./hung-disk.ts";
import { hostSource } from "./mount-source.ts";

test("a disk that does not answer holds its own caller up until its signal, retries take no thread, and others go on", async () => {
  const dir = await mkdtemp(join(tmpdir(), "bh-hung-"));
  try {
    await using _ = await hungDisk(join(dir, "disk"));
    const [path, link] = [join(dir, "disk/volume"), join(dir, "link")];
    await symlink(path, link);
    // More retries than libuv has threads.
    const tries = Array.from({ length: 80 }, () => hostSource(path, AbortSignal.timeout(300)));
    tries.push(hostSource(link, AbortSignal.timeout(300)));
    const said = await Promise.all(tries.map((each) => each.catch((error) => error.message)));
    expect([...new Set(said)]).toEqual(
      [path, link].map((at) => `Cannot mount "${at}": the file system that it is on does not answer`),
    );
    expect(await hostSource(join(dir, "made"), AbortSignal.timeout(30_000))).toBe(join(dir, "made"));
  } finally {
    await rm(dir, { recursive: true });
  }
});
