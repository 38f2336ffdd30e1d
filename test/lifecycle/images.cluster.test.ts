import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { endProcesses } from "../cluster/process.ts";
import { blobOf, descriptorOf, pushBlob, pushManifest } from "../images/push.ts";
import { first, podOf, ready } from "../pods/kube.ts";
import { inCache } from "../tools/cache.ts";
import { type Life, openLife } from "./life.ts";

/** An image that cannot be had: said clearly, tried again, nothing half kept (issue 3, "What must hold", 4). */

let life: Life;
beforeAll(async () => {
  life = await openLife("no-images");
  await life.install();
});
afterAll(async () => {
  await life?.[Symbol.asyncDispose]();
});

const found = (...below: string[]) =>
  life.node.exec(["sh", "-c", `cd /var/lib/bulkhead && find ${below.join(" ")} ! -type d | sort`]);

/** The layers that containers can be made of. Containers and mounts beside them come and go with the canaries. */
const layers = () => found("snapshots/l", "snapshots/layers");

/** All that the runtime keeps of images. */
const stored = () => found("images", "snapshots/l", "snapshots/layers", "snapshots/staging");

/** The pod waits for its image: first with the error, then backing off. */
const waits = async (
  name: string,
  wanted: string,
  message: RegExp,
  reason = "ErrImagePull",
): Promise<void> => {
  await life.ns.apply(podOf(name, "standard", wanted, { imagePullPolicy: "Always" }));
  const failed = await life.ns.until(name, (pod) => first(pod)?.state.waiting?.reason === reason);
  expect(first(failed)?.state.waiting?.message).toMatch(message);
  await life.ns.until(name, (pod) => first(pod)?.state.waiting?.reason === "ImagePullBackOff");
};

test.each([
  ["does not exist", "bulkhead/none:1", /NotFound.*bulkhead\/none:1.*404/],
  ["has no such digest", `bulkhead/test@sha256:${"0".repeat(64)}`, /NotFound.*0{64}.*404/],
])("An image that %s is said to, backs off, and leaves nothing", async (_why, ref, message) => {
  const before = await stored();
  try {
    await waits("no-image", `${life.cluster.registry}/${ref}`, message);
    expect(await stored()).toBe(before);
  } finally {
    await life.ns.remove("no-image");
  }
});

test("A layer whose bytes are not its digest's is refused by both digests' names, and comes when it is whole", async () => {
  const target = { url: `http://${life.cluster.registry}`, repository: "lifecycle/corrupt" };
  // Two blocks of zeros are an empty tar; what follows makes this layer one of its own.
  const bytes = Buffer.concat([Buffer.alloc(1024), Buffer.from(`${Date.now()}`.padEnd(512, "\0"))]);
  const layer = blobOf("application/vnd.oci.image.layer.v1.tar", bytes);
  const config = blobOf("application/vnd.oci.image.config.v1+json", {
    architecture: process.arch === "arm64" ? "arm64" : "amd64",
    os: "linux",
    config: {},
    rootfs: { type: "layers", diff_ids: [layer.digest] },
  });
  for (const blob of [layer, config]) await pushBlob(target, blob);
  const manifest = blobOf("application/vnd.oci.image.manifest.v1+json", {
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    config: descriptorOf(config),
    layers: [descriptorOf(layer)],
  });
  await pushManifest(target, "1", manifest);
  // The registry serves its files as they are.
  const hex = layer.digest.slice("sha256:".length);
  const blobs = inCache("registry", "docker/registry/v2/blobs/sha256", hex.slice(0, 2), hex);
  const file = join(blobs, "data");
  const whole = await readFile(file);
  const before = await layers();
  try {
    await writeFile(file, Buffer.from(whole).fill("x", 1024, 1030));
    await waits(
      "corrupt",
      `${target.url.slice("http://".length)}/${target.repository}:1`,
      new RegExp(`${hex} but [0-9a-f]{64}`),
    );
    // What was good of it is kept for the next try; nobody can see or run it.
    expect(await layers()).toBe(before);
    expect(await life.crictl("images")).not.toContain("corrupt");
    await writeFile(file, whole);
    // There is nothing to run in it: the image came, its command did not.
    const came = await life.ns.until(
      "corrupt",
      (pod) => !/^(ErrImagePull|ImagePullBackOff)$/.test(first(pod)?.state.waiting?.reason ?? ""),
      60,
    );
    expect(JSON.stringify(came.status)).toMatch(/sleep/);
  } finally {
    await writeFile(file, whole);
    await life.ns.remove("corrupt");
    await rm(inCache("registry", "docker/registry/v2/repositories/lifecycle/corrupt"), {
      recursive: true,
      force: true,
    });
  }
});

test("A registry that is down is said to be, and the image comes when the registry does", async () => {
  const before = await stored();
  const registry = (await life.cluster.processes()).filter(({ component }) => component === "registry");
  await endProcesses(registry, 0);
  try {
    await waits("no-registry", life.image, /ECONNREFUSED|connection refused/i, "RegistryUnavailable");
    expect(await stored()).toBe(before);
  } finally {
    await life.cluster.restartComponent("registry");
  }
  await life.ns.until("no-registry", ready, 90);
  await life.ns.remove("no-registry");
});
