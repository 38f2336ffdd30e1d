import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";

test("a keeper that cannot be recorded, for want of file descriptors, does not stay", () => {
  const dir = mkdtempSync(join(tmpdir(), "bh-keeper-"));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  const keeper = join(dir, "keeper");
  writeFileSync(keeper, "#!/bin/sh\nexec sleep 100\n", { mode: 0o755 });
  const [stdout, stderr] = [join(dir, "out"), join(dir, "err")];
  execFileSync("mkfifo", [stdout, stderr]);
  const program = `
    import { closeSync, openSync, readdirSync, readFileSync } from "node:fs";
    import { startKeeper } from ${JSON.stringify(import.meta.resolve("./stdio.ts"))};
    const stdio = ${JSON.stringify({ stdin: "", stdout, stderr })};
    const children = () => readFileSync("/proc/self/task/" + process.pid + "/children", "utf8").trim();
    const fds = [];
    try { for (;;) fds.push(openSync("/dev/null")); } catch {}
    // For its two ends of the FIFOs.
    for (const fd of fds.splice(-2)) closeSync(fd);
    try { startKeeper(${JSON.stringify(keeper)}, stdio); } catch ({ code }) { console.log(code); }
    for (const fd of fds) closeSync(fd);
    setTimeout(() => console.log("children:", children()), 300);`;
  const argv = ["--nofile=64:64", process.execPath, "--input-type=module", "-e", program];
  expect(execFileSync("prlimit", argv, { encoding: "utf8" })).toBe("resource-exhausted\nchildren: \n");
});
