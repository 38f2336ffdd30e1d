import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, rmdir } from "node:fs/promises";
import { join } from "node:path";

/** A cgroup for an engine, everything that it starts, and its pods, so that the kernel adds up their time. */
export type CpuAccount = AsyncDisposable & {
  /** As pods name it as their parent. */
  pods: string;
  /** Where a process writes its id to be counted. */
  procs: string;
  /** Seconds of CPU since the account was opened. */
  seconds(): Promise<number>;
};

const v1 = "/sys/fs/cgroup/cpuacct";

/** Opens the account of that name, in cgroup v1's cpuacct or in v2. */
export const openCpuAccount = async (name: string): Promise<CpuAccount> => {
  const old = existsSync(v1);
  const top = join(old ? v1 : "/sys/fs/cgroup", name);
  await mkdir(join(top, "engine"), { recursive: true });
  return {
    pods: `/${name}/pods`,
    procs: join(top, "engine", "cgroup.procs"),
    async seconds() {
      if (old) return Number(await readFile(join(top, "cpuacct.usage"), "utf8")) / 1e9;
      const stat = await readFile(join(top, "cpu.stat"), "utf8");
      return Number(/^usage_usec (\d+)/m.exec(stat)?.[1]) / 1e6;
    },
    async [Symbol.asyncDispose]() {
      // Pods' parents were made in every hierarchy; removing them is kubelet's work, and here ours.
      for (const tree of ["", ...(await readdir("/sys/fs/cgroup"))]) {
        const own = join("/sys/fs/cgroup", tree, name);
        const below = await readdir(own, { recursive: true, withFileTypes: true }).catch(() => []);
        const dirs = below
          .filter((each) => each.isDirectory())
          .map((each) => join(each.parentPath, each.name));
        for (const dir of [own, ...dirs].sort().reverse()) await rmdir(dir).catch(() => {});
      }
    },
  };
};
