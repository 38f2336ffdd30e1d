import { execFileSync } from "node:child_process";
import { expect, test } from "vitest";

/** What a program says that may open few files and has all of them open; `take` opens them and gives the last few back. */
const exhausted = (program: string): string[] =>
  execFileSync(
    "prlimit",
    [
      ...["--nofile=64:64", process.execPath, "--input-type=module", "-e"],
      `import { closeSync, openSync } from "node:fs";
       const fds = [];
       const take = () => { try { for (;;) fds.push(openSync("/dev/null")); } catch {} };
       const give = (many) => { for (const fd of fds.splice(-many)) closeSync(fd); };
       ${program}`,
    ],
    { encoding: "utf8" },
  )
    .trim()
    .split("\n");

test("who cannot be looked at, for want of file descriptors, is not gone", () => {
  expect(
    exhausted(`
      import { identify, isAlive, readProcess } from ${JSON.stringify(import.meta.resolve("./process.ts"))};
      const self = identify(process.pid);
      console.log(isAlive(self), isAlive({ ...self, startTime: 1n }), identify(2 ** 22 + 1));
      take();
      console.log(isAlive(self));
      for (const look of [identify, readProcess])
        try { console.log(look(process.pid)); } catch ({ code, message }) { console.log(code, message.replace(/\\d+/, "N")); }`),
  ).toEqual([
    "true false undefined",
    "true",
    "resource-exhausted Cannot look at process N: no file descriptors are left",
    "resource-exhausted Cannot look at process N: no file descriptors are left",
  ]);
});

test("nor is anything else that is to be ended, removed or given back", () => {
  const module = (path: string) => JSON.stringify(import.meta.resolve(path));
  expect(
    exhausted(`
      import { createAttachments } from ${module("../network/attachments.ts")};
      import { createLinux } from ${module("./linux-ffi.ts")};
      import { processesOf } from ${module("../stats/cgroup.ts")};
      import { specCgroup } from ${module("../stats/cgroup-removal.ts")};
      import { readCgroups } from ${module("../stats/layout.ts")};
      const layout = { version: 2, mounts: { "": { mountpoint: "/sys/fs/cgroup", root: "/" } } };
      const linux = createLinux();
      const looks = {
        processes: () => processesOf({ "": "/sys/fs/cgroup" }).length,
        cgroups: () => Object.keys(readCgroups(process.pid, layout)).length,
        cgroup: () => specCgroup("/etc/hostname", "id", layout),
        attachment: () => createAttachments("/tmp").of("id"),
      };
      const say = async (what, look) => {
        try { console.log(what, await look()); } catch ({ code }) { console.log(what, code); }
      };
      take();
      for (const [what, look] of Object.entries(looks)) await say(what, look);
      // The one left is the process's own, and its start time cannot be read any more.
      give(1);
      await say("kill", () => linux.kill(process.pid, 1n, 0));`),
  ).toEqual([
    "processes EMFILE",
    "cgroups EMFILE",
    "cgroup EMFILE",
    "attachment EMFILE",
    "kill resource-exhausted",
  ]);
});
