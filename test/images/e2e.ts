import { readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { tool } from "../tools/cache.ts";
import { debianProgram } from "../tools/debian.ts";
import type { ImageSpec } from "./catalog.ts";
import { imageOf, type Layer, mediaTypes } from "./image.ts";
import { busybox, compiled, localhostPair, withLibraries } from "./programs.ts";
import { type Blob, blobOf, descriptorOf } from "./push.ts";
import { pauseSource, shellSource } from "./sources.ts";
import { type Entry, tarOf } from "./tar.ts";

/** Packages of the libraries that curl needs, which specs call in agnhost's image. */
const curlLibraries = [
  ...["libbrotli1", "libcom-err2", "libcurl4", "libffi8", "libgmp10", "libgnutls30", "libgssapi-krb5-2"],
  ...["libhogweed6", "libidn2-0", "libk5crypto3", "libkeyutils1", "libkrb5-3", "libkrb5support0"],
  ...["libldap-2.5-0", "libnettle8", "libnghttp2-14", "libp11-kit0", "libpsl5", "librtmp1", "libsasl2-2"],
  ...["libssh2-1", "libssl3", "libtasn1-6", "libunistring2", "libzstd1", "zlib1g"],
];

/**
 * What the suite expects of its busybox beyond ours: every applet in /bin, and a shell that speaks as busybox's and hands
 * on every variable.
 */
export const e2eShellFiles = async (): Promise<Entry[]> => {
  const { applets } = await busybox();
  const elsewhere = applets.filter((path) => !path.startsWith("bin/")).map((path) => basename(path));
  const bash = await readFile(await debianProgram("bash-static", "bin/bash-static"));
  return [
    { type: "file", path: "bin/sh", data: await compiled("e2e-sh", shellSource), mode: 0o755 },
    { type: "file", path: "bin/bash", data: bash, mode: 0o755 },
    ...elsewhere.sort().map((name): Entry => ({ type: "symlink", path: `bin/${name}`, to: "busybox" })),
  ];
};

/** agnhost, as upstream's Containerfile lays it out (k8s.io/kubernetes/test/images/agnhost). */
export const agnhostFiles = async (): Promise<Entry[]> => {
  const file = (path: string, data: Uint8Array | string, mode = 0o644): Entry => ({
    type: "file",
    path,
    data,
    mode,
  });
  const { key, certificate } = await localhostPair();
  return [
    file("localhost.key", key),
    file("localhost.crt", certificate),
    file("agnhost", await readFile(tool("agnhost")), 0o755),
    { type: "symlink", path: "agnhost-2", to: "agnhost" },
    { type: "folder", path: "uploads" },
    ...(await withLibraries([{ pkg: "curl", from: "usr/bin/curl", to: "usr/bin/curl" }], curlLibraries)),
    ...(await registryFiles()),
  ];
};

/** What agnhost's fake-registry-server serves: pause:testing, as an index, by the paths that it reads. */
const registryFiles = async (): Promise<Entry[]> => {
  const program = await compiled("pause", pauseSource);
  const tar = blobOf(mediaTypes.tar, tarOf([{ type: "file", path: "pause", mode: 0o755, data: program }]));
  const layer: Layer = { diffId: tar.digest, blob: tar };
  const { config, manifest } = imageOf([layer], { Entrypoint: ["/pause"] });
  const platform = { os: "linux", architecture: process.arch === "x64" ? "amd64" : process.arch };
  const index = blobOf(mediaTypes.index, {
    schemaVersion: 2,
    mediaType: mediaTypes.index,
    manifests: [{ ...descriptorOf(manifest), platform }],
  });
  const home = "var/registry/pause";
  const stored = (kind: string, blob: Blob): Entry => {
    const hash = blob.digest.slice("sha256:".length);
    return {
      type: "file",
      path: join(home, kind, "sha256", hash.slice(0, 2), hash, "data"),
      data: blob.bytes,
    };
  };
  return [
    { type: "file", path: `${home}/manifests/testing`, data: index.digest },
    ...[index, manifest].map((blob) => stored("manifests", blob)),
    ...[config, tar].map((blob) => stored("blobs", blob)),
  ];
};

/** The image repository that e2e's own images are in. */
const e2e = (...names: string[]): string[] => names.map((name) => `e2e-test-images/${name}`);

/**
 * Images of upstream's end-to-end suite (k8s.io/kubernetes/test/utils/image/manifest.go) that its [NodeConformance]
 * specs start. They stand apart from the other test images: agnhost takes a Go build.
 */
export const e2eCatalog: readonly ImageSpec[] = [
  {
    names: e2e("agnhost:2.63.0", "agnhost:2.55"),
    layers: ["busybox", "e2e-shell", "e2e-users", "agnhost"],
    config: { Entrypoint: ["/agnhost"], Cmd: ["pause"] },
  },
  {
    // Of glibc-dns-testing specs of this kind call hostname alone; dig and what else is in it is not here.
    names: e2e("busybox:1.37.0-1", "busybox:1.36.1-1", "ipc-utils:1.4", "glibc-dns-testing:2.0.0"),
    layers: ["busybox", "e2e-shell"],
    config: { Cmd: ["sh"] },
  },
  {
    names: e2e("nginx:1.15-4", "nginx:1.27-0"),
    layers: ["busybox", "nginx", "nginx-80"],
    config: { Cmd: ["nginx", "-g", "daemon off;"] },
  },
  {
    names: e2e("nonewprivs:1.4"),
    layers: ["busybox", "nonewprivs"],
    config: { Entrypoint: ["/usr/local/bin/nnp"], User: "1000" },
  },
  { names: e2e("nonroot:1.5"), layers: ["busybox", "e2e-shell"], config: { User: "1234", Cmd: ["sh"] } },
  { names: ["pause:3.10.2"], layers: ["pause"], config: { Entrypoint: ["/pause"] } },
];
