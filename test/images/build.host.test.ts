import { mkdir, mkdtemp, readdir, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Image } from "../../runtime/src/image/images.ts";
import { type ImageStore, openImages } from "../../runtime/src/image/store.ts";
import { createLinux } from "../../runtime/src/linux/linux-ffi.ts";
import { overlay } from "../../runtime/src/snapshot/overlay.ts";
import type { Snapshotter } from "../../runtime/src/snapshot/snapshotter.ts";
import { outcome, run } from "../tools/run.ts";
import { ensureTestImages } from "./build.ts";
import { catalog } from "./catalog.ts";
import { type RunningRegistry, startRegistry } from "./registry.ts";

let scratch: string;
let registry: RunningRegistry;
let snapshotter: Snapshotter & AsyncDisposable;
let images: ImageStore;
const log = { debug: () => {}, info: () => {}, warn: () => {} };

// The first time busybox is built from its source.
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "bh-catalog-"));
  registry = await startRegistry({ dir: join(scratch, "registry") });
  await ensureTestImages(registry.url);
  snapshotter = await overlay(join(scratch, "layers"), createLinux());
  const mirrors = { "registry.k8s.io": [registry.url], "gcr.io": [registry.url] };
  images = await openImages({ root: join(scratch, "images"), snapshotter, mirrors, log });
}, 600_000);
afterAll(async () => {
  await images?.[Symbol.asyncDispose]();
  await snapshotter?.[Symbol.asyncDispose]();
  await registry?.stop();
  await rm(scratch, { recursive: true, force: true });
});

const pull = (name: string): Promise<Image> => images.pull({ ref: name }, AbortSignal.timeout(60_000));

/** Runs `work` with the image's files mounted. */
const inside = async <T>(image: Image, work: (root: string) => Promise<T>): Promise<T> => {
  const key = image.id.slice(7, 19);
  const target = join(scratch, key);
  await mkdir(target);
  await snapshotter.mountContainer(key, image.layers, target);
  try {
    return await work(target);
  } finally {
    await snapshotter.unmount(target);
    await snapshotter.removeContainer(key);
  }
};

describe("The test images", () => {
  test("can all be pulled by the names that critest uses for them", async () => {
    for (const name of catalog.flatMap(({ names }) => names)) {
      const host = name.startsWith("k8s-staging-cri-tools/") ? "gcr.io" : "registry.k8s.io";
      expect((await pull(`${host}/${name}`)).repoTags).toContain(`${host}/${name}`);
    }
    // What has the same name in all three tags is one image, the others differ.
    expect(images.list()).toHaveLength(catalog.length);
  });

  test("are not pushed again when they are there", async () => {
    const began = performance.now();
    await ensureTestImages(registry.host);
    expect(performance.now() - began).toBeLessThan(20_000);
  });

  test("have the users that critest looks for", async () => {
    const user = async (name: string) => (await pull(`gcr.io/k8s-staging-cri-tools/test-image-${name}`)).user;
    expect(await user("user-uid")).toEqual({ uid: 1002, username: "" });
    expect(await user("user-username")).toEqual({ username: "www-data" });
    expect(await user("user-uid-group")).toEqual({ uid: 1003, username: "" });
    expect(await user("user-username-group")).toEqual({ username: "www-data" });
    expect(await user("predefined-group")).toEqual({ uid: 1000, username: "" });
  });

  test("have a shell that runs ls as a program: a mount over it shows", async () => {
    const image = await pull("registry.k8s.io/e2e-test-images/busybox:1.29-2");
    await inside(image, async (root) => {
      for (const applet of ["pgrep", "ipcs", "brctl", "netstat", "top", "ping"]) {
        const found = await run([
          "chroot",
          root,
          "/bin/sh",
          "-c",
          `PATH=/bin:/sbin:/usr/bin:/usr/sbin command -v ${applet}`,
        ]);
        expect(found.trim()).toMatch(new RegExp(`/${applet}$`));
      }
      expect((await stat(join(root, "bin/ls"))).isFile()).toBe(true);
      expect(await readFile(join(root, "etc/passwd"), "utf8")).toContain("nobody:x:65534:");
      // As masked paths do it; in a mount namespace of its own, so that nothing stays.
      const masked = `mount --bind /dev/null ${root}/bin/ls && exec chroot ${root} /bin/sh -c ls`;
      const { stderr } = await outcome(["unshare", "--mount", "sh", "-c", masked]);
      expect(stderr).toBe("/bin/sh: ls: Permission denied\n");
    });
  });

  test("have servers that answer, under their names", async () => {
    for (const [name, start, port, page] of [
      ["registry.k8s.io/e2e-test-images/nginx:1.14-2", "nginx", 80, "nginx"],
      [
        `gcr.io/k8s-staging-cri-tools/hostnet-nginx-${process.arch === "x64" ? "amd64" : process.arch}`,
        "nginx",
        12003,
        "nginx",
      ],
      ["registry.k8s.io/e2e-test-images/httpd:2.4.39-4", "httpd", 80, "It works"],
    ] as const) {
      const image = await pull(name);
      await inside(image, async (root) => {
        const command = image.config.cmd.map((word) => `'${word}'`).join(" ");
        const path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
        // In a session of its own, as in a container: Apache ends by a signal to its whole process group.
        const ask = `for i in 1 2 3 4 5 6 7 8 9 10; do wget -qO- http://127.0.0.1:${port}/ && break; sleep 0.2; done`;
        const script = `${path}; setsid ${command} & ${ask}; pgrep -l ${start}; kill $!; wait`;
        const prepare = `ip link set lo up; mount -t proc proc ${root}/proc; mount --rbind /dev ${root}/dev`;
        // Through a pipe, as under an engine: /dev/stdout cannot be opened when it is a socket.
        const whole = `${prepare}; chroot ${root} /bin/sh -c "$0" 2>&1 | cat`;
        const said = await run(["unshare", "-n", "-m", "-p", "-f", "sh", "-c", whole, script]);
        expect(said).toContain(page);
        expect(said).toMatch(new RegExp(`^[0-9]+ .*${start}`, "m"));
      });
    }
  });

  test("leave nothing behind in the store's staging folder", async () => {
    expect(await readdir(join(scratch, "images", "staging"))).toEqual([]);
  });
});
