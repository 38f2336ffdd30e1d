import { existsSync } from "node:fs";
import { chmod, mkdir, mkdtemp, readdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { inCache } from "./cache.ts";
import { run } from "./run.ts";

/** Debian 13 has a CRIU (4.1) that knows kernels from 6.13 on; Debian 12's does not. */
const suite = "trixie";

/** CRIU and all that its program is linked with, the C library among them: this machine's are older. */
const packages = [
  ...["criu", "libc6", "libprotobuf-c1", "libnl-3-200", "libnet1", "libbsd0", "libmd0", "libuuid1"],
  ...[
    "libnftables1",
    "libnftnl11",
    "libmnl0",
    "libxtables12",
    "libjansson4",
    "libgnutls30t64",
    "libp11-kit0",
  ],
  ...["libidn2-0", "libunistring5", "libtasn1-6", "libhogweed6t64", "libnettle8t64", "libgmp10", "libffi8"],
];

const libraries = "usr/lib/x86_64-linux-gnu";
/** Runs it with its own libraries, wherever its directory lies. */
const script = `#!/bin/sh
home=$(dirname "$(readlink -f "$0")")
exec "$home/usr/lib64/ld-linux-x86-64.so.2" --library-path "$home/${libraries}" "$home/usr/sbin/criu" "$@"
`;

/** A directory to put into PATH, with the program `criu` in it. */
export const criuHome = (): string => inCache("tools", `criu-${suite}`);

/** Fetches CRIU from Debian's archive, unless it is there. */
export const fetchCriu = async (signal?: AbortSignal): Promise<void> => {
  const home = criuHome();
  if (existsSync(home)) return;
  await mkdir(inCache("tools"), { recursive: true });
  const scratch = await mkdtemp(inCache("tools", ".new-"));
  try {
    const at = (name: string): string => join(scratch, name);
    for (const name of ["lists/partial", "cache/archives/partial", "tree"])
      await mkdir(at(name), { recursive: true });
    const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    await writeFile(
      at("sources.list"),
      `deb [signed-by=${keyring}] http://deb.debian.org/debian ${suite} main\n`,
    );
    // Lists of its own: the machine's packages stay what they are.
    const apart = [
      `Dir::Etc::sourcelist=${at("sources.list")}`,
      "Dir::Etc::sourceparts=/dev/null",
      `Dir::State::lists=${at("lists")}`,
      `Dir::Cache=${at("cache")}`,
      "Acquire::Languages=none",
    ].flatMap((option) => ["-o", option]);
    await run(["apt-get", ...apart, "update", "-q"], { signal });
    await run(["apt-get", ...apart, "download", "-q", ...packages], { cwd: scratch, signal });
    for (const name of await readdir(scratch))
      if (name.endsWith(".deb")) await run(["dpkg-deb", "-x", at(name), at("tree")], { signal });
    await rm(at("tree/usr/share"), { recursive: true, force: true });
    await writeFile(at("tree/criu"), script);
    await chmod(at("tree/criu"), 0o755);
    await chmod(at("tree"), 0o755);
    await rename(at("tree"), home).catch((error: unknown) => {
      if (!existsSync(home)) throw error;
    });
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
};
