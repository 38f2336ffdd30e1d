import { join } from "node:path";
import { architectures, here } from "../../images/parts.ts";
import { inCache } from "./cache.ts";
import { run } from "./run.ts";
import { fetchTrixie } from "./trixie.ts";

/** crun of Debian 13 (1.21), which is built with CRIU as Debian 12's is not, and its libraries. */
const packages = [
  ...["crun", "libc6", "libseccomp2", "libyajl2", "libcap2", "libsystemd0", "libcriu2", "libprotobuf-c1"],
];

const home = inCache("tools", "crun-trixie");

/** crun with CRIU; there after setup (test/tools/setup.ts). */
export const crunWithCriu = join(home, "usr/bin/crun");

/** Fetches it from Debian's archive, unless it is there. It runs with its own libraries, and finds `criu` in PATH. */
export const fetchCrun = (signal?: AbortSignal): Promise<void> =>
  fetchTrixie(
    home,
    packages,
    async (tree) => {
      const { triplet, loader } = architectures[here];
      const libraries = join(home, "usr/lib", triplet);
      const interpreter = join(libraries, loader);
      const set = ["--set-interpreter", interpreter, "--force-rpath", "--set-rpath", libraries];
      await run(["patchelf", ...set, join(tree, "usr/bin/crun")], { signal });
    },
    signal,
  );
