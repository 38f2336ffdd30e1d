import { chmod, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { architectures, here } from "../../images/parts.ts";
import { inCache } from "./cache.ts";
import { fetchTrixie } from "./trixie.ts";

/**
 * CRIU of Debian 13 (4.1), which knows kernels from 6.13 on as Debian 12's does not, and all that its program is linked
 * with, the C library among them: this machine's are older.
 */
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

const { triplet, loader } = architectures[here];
const libraries = `usr/lib/${triplet}`;
/** Runs it with its own libraries, wherever its directory lies. */
const script = `#!/bin/sh
home=$(dirname "$(readlink -f "$0")")
exec "$home/${libraries}/${loader}" --library-path "$home/${libraries}" "$home/usr/sbin/criu" "$@"
`;

/** A directory to put into PATH, with the program `criu` in it. */
export const criuHome = (): string => inCache("tools", "criu-trixie");

/** Fetches CRIU from Debian's archive, unless it is there. */
export const fetchCriu = (signal?: AbortSignal): Promise<void> =>
  fetchTrixie(
    criuHome(),
    packages,
    async (tree) => {
      await writeFile(join(tree, "criu"), script);
      await chmod(join(tree, "criu"), 0o755);
    },
    signal,
  );
