import { agnhostFiles, e2eShellFiles } from "./e2e.ts";
import type { RunConfig } from "./image.ts";
import { busybox, compiled, withLibraries } from "./programs.ts";
import { httpdConfig, nginxConfig, nonewprivsSource, pauseSource } from "./sources.ts";
import type { Entry } from "./tar.ts";

/** An image to build: what it is called in the registry, its layers from the lowest, and what it runs. */
export type ImageSpec = {
  /** REPOSITORY:TAG, all of which get the same image. */
  names: readonly string[];
  layers: readonly LayerName[];
  config?: RunConfig;
};

export type LayerName = keyof typeof layers | `marker:${string}`;

const folder = (path: string, mode?: number): Entry => ({
  type: "folder",
  path,
  ...(mode === undefined ? {} : { mode }),
});
const file = (path: string, data: string | Uint8Array, mode?: number): Entry => ({
  type: "file",
  path,
  data,
  ...(mode === undefined ? {} : { mode }),
});

const passwd = [
  "root:x:0:0:root:/root:/bin/sh",
  "daemon:x:1:1:daemon:/usr/sbin:/bin/false",
  "www-data:x:33:33:www-data:/var/www:/bin/false",
  "nobody:x:65534:65534:nobody:/home:/bin/false",
];
const group = ["root:x:0:", "daemon:x:1:", "www-data:x:33:", "nobody:x:65534:", "nogroup:x:65533:"];
const lines = (all: readonly string[]): string => `${all.join("\n")}\n`;

/** Applets are hard links: a mount over /bin/ls must cover ls alone, not the program behind all of them. */
const base = async (): Promise<Entry[]> => {
  const { program, applets } = await busybox();
  const others = applets.filter((path) => path !== "bin/busybox").sort();
  return [
    ...[
      "bin",
      "sbin",
      "usr",
      "usr/bin",
      "usr/sbin",
      "etc",
      "home",
      "dev",
      "proc",
      "sys",
      "var",
      "var/run",
      "var/www",
    ].map((path) => folder(path)),
    folder("root", 0o700),
    folder("tmp", 0o1777),
    file("bin/busybox", program, 0o755),
    ...others.map((path): Entry => ({ type: "link", path, to: "bin/busybox", mode: 0o755 })),
    file("etc/passwd", lines(passwd)),
    file("etc/group", lines(group)),
    file("var/www/index.html", "bulkhead\n"),
  ];
};

const nginxFiles = async (): Promise<Entry[]> => [
  ...(await withLibraries(
    [{ pkg: "nginx", from: "usr/sbin/nginx", to: "usr/sbin/nginx" }],
    ["libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"],
  )),
  folder("var/lib/nginx"),
  folder("var/log/nginx"),
  file("usr/share/nginx/html/index.html", "<h1>Welcome to nginx!</h1>\n"),
];

const httpdFiles = async (): Promise<Entry[]> => {
  const home = "usr/local/apache2";
  const modules = ["mpm_prefork", "authz_core", "dir"].map((name) => `mod_${name}.so`);
  return [
    ...(await withLibraries(
      [
        { pkg: "apache2-bin", from: "usr/sbin/apache2", to: `${home}/bin/httpd` },
        ...modules.map((name) => ({
          pkg: "apache2-bin",
          from: `usr/lib/apache2/modules/${name}`,
          to: `${home}/modules/${name}`,
        })),
      ],
      ["libapr1", "libaprutil1", "libcrypt1", "libexpat1", "libpcre2-8-0", "libuuid1"],
    )),
    file(`${home}/conf/httpd.conf`, httpdConfig),
    file(`${home}/htdocs/index.html`, "<h1>It works!</h1>\n"),
  ];
};

/** Layers by name; each is built once, however many images stand on it. */
export const layers = {
  busybox: base,
  nginx: nginxFiles,
  "nginx-80": async (): Promise<Entry[]> => [file("etc/nginx/nginx.conf", nginxConfig(80))],
  "nginx-12003": async (): Promise<Entry[]> => [file("etc/nginx/nginx.conf", nginxConfig(12003))],
  httpd: httpdFiles,
  nonewprivs: async (): Promise<Entry[]> => [
    file("usr/local/bin/nnp", await compiled("nnp", nonewprivsSource), 0o4755),
  ],
  pause: async (): Promise<Entry[]> => [file("pause", await compiled("pause", pauseSource), 0o755)],
  groups: async (): Promise<Entry[]> => [
    file("etc/passwd", lines([...passwd, "default-user:x:1000:1000:default-user:/home:/bin/sh"])),
    file(
      "etc/group",
      lines([...group, "default-user:x:1000:", "group-defined-in-image:x:50000:default-user"]),
    ),
  ],
  "e2e-users": async (): Promise<Entry[]> => [
    file(
      "etc/passwd",
      lines([...passwd, "user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh"]),
    ),
    file(
      "etc/group",
      lines([
        ...group,
        "user-defined-in-image:x:1000:",
        "group-defined-in-image:x:50000:user-defined-in-image",
      ]),
    ),
  ],
  "e2e-shell": e2eShellFiles,
  agnhost: agnhostFiles,
} as const satisfies Record<string, () => Promise<Entry[]>>;

/** The entries of a layer; `marker:NAME` is a file NAME that makes an image differ from its like. */
export const entriesOf = (name: LayerName): Promise<Entry[]> => {
  if (!name.startsWith("marker:")) return layers[name as keyof typeof layers]();
  const marker = name.slice("marker:".length);
  return Promise.resolve([file(marker, `${marker}\n`)]);
};

const nginx = ["nginx", "-g", "daemon off;"];
const userImage = (name: string, User: string): ImageSpec => ({
  names: [`k8s-staging-cri-tools/${name}:latest`],
  layers: ["busybox"],
  config: { User, Cmd: ["sh"] },
});
const markedImage = (marker: string, ...names: string[]): ImageSpec => ({
  names: names.map((name) => `k8s-staging-cri-tools/${name}`),
  layers: ["busybox", `marker:${marker}`],
  config: { Cmd: ["sh"] },
});
const architecture = process.arch === "x64" ? "amd64" : process.arch;

/**
 * Every image that the tests use. Paths are those of registry.k8s.io and gcr.io/…, so that a mirror of these hosts in
 * the runtime's configuration leads here.
 */
export const catalog: readonly ImageSpec[] = [
  { names: ["bulkhead/test:1"], layers: ["busybox", "marker:bulkhead"], config: { Cmd: ["sh"] } },
  // The second is the node agent's canary, where no bundle brings it.
  { names: ["bulkhead/no-command:1", "canary:1"], layers: ["busybox"] },
  {
    names: ["pause:3.10", "pause:3.9", "pause:latest"],
    layers: ["pause"],
    config: { Entrypoint: ["/pause"] },
  },
  { names: ["e2e-test-images/busybox:1.29-2"], layers: ["busybox"], config: { Cmd: ["sh"] } },
  {
    names: ["e2e-test-images/nginx:1.14-2"],
    layers: ["busybox", "nginx", "nginx-80"],
    config: { Cmd: nginx },
  },
  {
    names: ["e2e-test-images/httpd:2.4.39-4"],
    layers: ["busybox", "httpd"],
    config: {
      Cmd: ["/usr/local/apache2/bin/httpd", "-D", "FOREGROUND", "-f", "/usr/local/apache2/conf/httpd.conf"],
    },
  },
  {
    names: ["e2e-test-images/nonewprivs:1.3"],
    layers: ["busybox", "nonewprivs"],
    config: { Entrypoint: ["/usr/local/bin/nnp"], User: "1000" },
  },
  {
    names: [`k8s-staging-cri-tools/hostnet-nginx-${architecture}:latest`],
    layers: ["busybox", "nginx", "nginx-12003"],
    config: { Cmd: nginx },
  },
  userImage("test-image-user-uid", "1002"),
  userImage("test-image-user-username", "www-data"),
  userImage("test-image-user-uid-group", "1003:1004"),
  userImage("test-image-user-username-group", "www-data:1004"),
  {
    names: ["k8s-staging-cri-tools/test-image-predefined-group:latest"],
    layers: ["busybox", "groups"],
    config: { User: "1000", Cmd: ["sh"] },
  },
  markedImage("latest", "test-image-latest:latest"),
  markedImage("1", "test-image-1:latest"),
  markedImage("2", "test-image-2:latest"),
  markedImage("3", "test-image-3:latest"),
  markedImage("test", "test-image-tag:test"),
  markedImage("all", "test-image-tag:all"),
  markedImage("tags", "test-image-tags:1", "test-image-tags:2", "test-image-tags:3"),
];
