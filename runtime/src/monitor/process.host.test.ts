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

test("the processes of a cgroup are not none for want of file descriptors", () => {
  expect(
    exhausted(`
      import { processesOf } from ${JSON.stringify(import.meta.resolve("../stats/cgroup.ts"))};
      console.log(processesOf({ "": "/sys/fs/cgroup/none" }).length);
      take();
      try { console.log(processesOf({ "": "/sys/fs/cgroup" })); } catch ({ code }) { console.log(code); }`),
  ).toEqual(["0", "EMFILE"]);
});
