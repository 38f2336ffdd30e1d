import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test, vi } from "vitest";
import { startProxy } from "./proxy.ts";
import { gzipLayer, never, push, text, useStore } from "./store-fixture.ts";

/* The proxy is a fake: a registry that has lost a blob. */

const use = useStore();

/** An image of two layers whose upper one the registry does not give; pulling it fails with the lower one there. */
const failing = async (proxy: Awaited<ReturnType<typeof startProxy>>, name: string) => {
  const [lower, upper] = [gzipLayer(text("lower", name)), gzipLayer(text("upper", name))];
  await push({ url: use.registry.url, repository: name }, "1", [lower, upper]);
  proxy.intercept = ({ path }, response) => {
    if (!path.endsWith(upper.blob.digest)) return false;
    void vi
      .waitUntil(() => use.snapshotter.has(lower.diffId), { timeout: 30_000 })
      .finally(() => response.writeHead(404).end());
    return true;
  };
  const ref = `${proxy.host}/${name}:1`;
  await expect(use.images.pull({ ref }, never)).rejects.toMatchObject({ code: "not-found" });
  return { ref, lower: lower.diffId, blob: lower.blob.digest };
};

const files = async (): Promise<string[]> => {
  const below = await Promise.all(
    ["images", "blobs/sha256", "staging"].map((dir) => readdir(join(use.root, "images", dir))),
  );
  return below.flat();
};

const goes = (id: string): Promise<unknown> =>
  vi.waitUntil(async () => !use.snapshotter.has(id) && (await files()).length === 0, { timeout: 30_000 });

describe("What a failed pull left", () => {
  test("serves the next try, whatever is removed or collected meanwhile", async () => {
    await using proxy = await startProxy(use.registry.url);
    await push({ url: use.registry.url, repository: "case/other" }, "1", [gzipLayer(text("o", "o"))]);
    const other = await use.images.pull({ ref: `${use.registry.host}/case/other:1` }, never);
    const { ref, lower, blob } = await failing(proxy, "case/next-try");
    await use.images.remove(other.id, never);
    await use.images.collect();
    expect(use.snapshotter.has(lower)).toBe(true);
    proxy.intercept = () => false;
    proxy.seen.length = 0;
    expect((await use.images.pull({ ref }, never)).layers).toHaveLength(2);
    expect(proxy.seen.filter(({ path }) => path.endsWith(blob))).toEqual([]);
    // It is an image like any other now: removed at once.
    await use.images.remove(ref, never);
    expect(use.snapshotter.has(lower)).toBe(false);
  });

  test("goes by itself when no other try comes, however often others fail", async () => {
    await using proxy = await startProxy(use.registry.url);
    await use.reopen({ keepMs: 1000 });
    const { lower } = await failing(proxy, "case/nobody");
    let others = 0;
    for (const end = Date.now() + 5000; use.snapshotter.has(lower) && Date.now() < end; await sleep(50))
      await failing(proxy, `case/others-${others++}`);
    expect(use.snapshotter.has(lower)).toBe(false);
    expect(others).toBeGreaterThan(1);
  });

  test("goes by itself after a restart", async () => {
    await using proxy = await startProxy(use.registry.url);
    const { lower } = await failing(proxy, "case/restart");
    await use.reopen({ keepMs: 300 });
    expect(use.snapshotter.has(lower)).toBe(true);
    await goes(lower);
  });

  test("goes when a layer that could not be removed at first can be", async () => {
    await using proxy = await startProxy(use.registry.url);
    await use.reopen({ keepMs: 300 });
    const { lower } = await failing(proxy, "case/stuck");
    const target = join(use.root, "stuck");
    await mkdir(target);
    await use.snapshotter.mountReadonly("stuck", [lower], target);
    await sleep(800);
    expect(use.snapshotter.has(lower)).toBe(true);
    await use.snapshotter.unmount(target);
    await use.snapshotter.removeContainer("stuck");
    await goes(lower);
  });
});
