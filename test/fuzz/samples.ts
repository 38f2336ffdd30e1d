/** What the parsers meet in real life: as registries, plugins, tools and distributions write it. */

const digest = (letter: string): string => `sha256:${letter.repeat(64)}`;

export const references = [
  "busybox",
  "docker.io/library/busybox:1.36",
  "registry.k8s.io/e2e-test-images/busybox:1.29-2",
  "localhost:5000/team/app:v1",
  `[::1]:5000/a/b@${digest("a")}`,
];

export const manifests = [
  JSON.stringify({
    schemaVersion: 2,
    mediaType: "application/vnd.docker.distribution.manifest.v2+json",
    config: {
      mediaType: "application/vnd.docker.container.image.v1+json",
      size: 1457,
      digest: digest("b"),
    },
    layers: [
      { mediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip", size: 2152262, digest: digest("c") },
      {
        mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        size: 32,
        digest: digest("d"),
        urls: ["https://example.com/layer"],
      },
    ],
  }),
  JSON.stringify({
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.index.v1+json",
    manifests: [
      {
        mediaType: "application/vnd.oci.image.manifest.v1+json",
        digest: digest("e"),
        size: 610,
        platform: { architecture: "arm64", os: "linux", variant: "v8" },
      },
      {
        mediaType: "application/vnd.oci.image.manifest.v1+json",
        digest: digest("f"),
        size: 566,
        platform: { architecture: "amd64", os: "linux" },
      },
    ],
  }),
];

export const configurations = [
  JSON.stringify({
    architecture: "amd64",
    os: "linux",
    created: "2024-09-26T21:31:42Z",
    config: {
      User: "1003:1004",
      Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
      Cmd: ["sh"],
      Entrypoint: null,
      WorkingDir: "/work",
      StopSignal: "SIGQUIT",
      Volumes: { "/data": {} },
      Labels: { maintainer: "somebody" },
    },
    rootfs: { type: "layers", diff_ids: [digest("1"), digest("2")] },
    history: [{ created: "2024-09-26T21:31:42Z", created_by: "BusyBox 1.36.1 (glibc), Debian 12" }],
  }),
];

export const challenges = [
  'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull"',
  'Basic realm="Registry Realm", Bearer realm="https://ghcr.io/token",service="ghcr.io",error="invalid_token"',
  "Negotiate, NTLM",
];
export const retryAfters = ["120", "Fri, 27 Nov 2026 20:00:00 GMT"];
export const links = ['</v2/library/app/referrers/sha256:a?n=100&last=b>; rel="next"'];

export const dockerConfigs = [
  JSON.stringify({
    auths: {
      "https://index.docker.io/v1/": { auth: "dXNlcjpwYXNz" },
      "*.dkr.ecr.eu-central-1.amazonaws.com": { username: "AWS", password: "x" },
    },
    credHelpers: { "gcr.io": "gcloud" },
    credsStore: "desktop",
  }),
];

export const hostsTomls = [
  `server = "https://registry-1.docker.io"

[host."https://mirror.example:5000"]
  capabilities = ["pull", "resolve"]
  skip_verify = true
  override_path = false
  [host."https://mirror.example:5000".header]
    x-custom = ["a", "b"]

[host."http://10.0.0.1:5000/v2/proxy"]
  override_path = true
`,
];

export const networks = [
  JSON.stringify({
    cniVersion: "1.0.0",
    name: "cbr0",
    plugins: [
      { type: "flannel", delegate: { hairpinMode: true, isDefaultGateway: true } },
      { type: "portmap", capabilities: { portMappings: true } },
    ],
  }),
  JSON.stringify({ cniVersion: "0.3.1", name: "mynet", type: "bridge", ipam: { type: "host-local" } }),
];

export const cniResults = [
  JSON.stringify({
    cniVersion: "1.0.0",
    interfaces: [
      { name: "cni0", mac: "7a:8f:00:11:22:33" },
      { name: "veth5c1d5b4e", mac: "d6:e3:00:11:22:33" },
      { name: "eth0", mac: "2a:17:00:11:22:33", sandbox: "/run/netns/x" },
    ],
    ips: [
      { interface: 2, address: "10.85.0.7/16", gateway: "10.85.0.1" },
      { interface: 2, address: "1100:200::7/24", gateway: "1100:200::1" },
    ],
    routes: [{ dst: "0.0.0.0/0", gw: "10.85.0.1" }, { dst: "::/0" }],
    dns: {},
  }),
  JSON.stringify({ cniVersion: "0.2.0", ip4: { ip: "10.1.2.3/24" } }),
];
export const cniErrors = [
  JSON.stringify({ cniVersion: "1.0.0", code: 7, msg: "no IP addresses available", details: "range set 0" }),
  'time="2026-11-27T20:00:00Z" level=error msg="cannot do it"\n{"level":"error","msg":"nor that"}',
];

export const seccompProfiles = [
  JSON.stringify({
    defaultAction: "SCMP_ACT_ERRNO",
    defaultErrnoRet: 38,
    architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
    syscalls: [
      { names: ["accept", "accept4", "access"], action: "SCMP_ACT_ALLOW" },
      {
        names: ["personality"],
        action: "SCMP_ACT_ALLOW",
        args: [{ index: 0, value: 131080, valueTwo: 0, op: "SCMP_CMP_EQ" }],
      },
    ],
  }),
];

export const cdiFiles = [
  `---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
  - name: "0"
    containerEdits:
      deviceNodes:
        - path: /dev/null
        - path: /dev/dri/card1
          type: c
          major: 226
          minor: 1
          permissions: rw
      additionalGids: [44]
containerEdits:
  env:
    - NVIDIA_VISIBLE_DEVICES=void
  hooks:
    - hookName: createContainer
      path: /usr/bin/nvidia-cdi-hook
      args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib/x86_64-linux-gnu]
  mounts:
    - hostPath: /usr/bin/nvidia-smi
      containerPath: /usr/bin/nvidia-smi
      options: [ro, nosuid, nodev, bind]
`,
];

export const passwds = [
  `root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
_apt:x:42:65534::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
`,
];
export const groups = ["root:x:0:\nadm:x:4:syslog,www-data\nwww-data:x:33:\nnogroup:x:65534:\n"];

export const bootstraps = [
  '{"version":3,"address":"unix:///run/containerd/s/4a6e","protocol":"ttrpc"}',
  "unix:///run/bulkhead/shim/s/4a6e\n",
];
export const memoryAnswers = [
  '{"success":true,"result":{"event":{"type":"stats","id":"c","data":{"memory":{"usage":{"usage":13246464}}}}}}\n',
];
export const monitorReports = ['{"pid": 4711}\n', '{"pid": -1, "message": "exec: \\"x\\": not found"}'];
export const windowSizes = ['{"Width":120,"Height":40}\n{"Width":80,"Height":24}\n'];
