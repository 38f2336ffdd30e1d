import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";

test("a folder is watched by looking where the kernel gives no inotify", () => {
  const dir = mkdtempSync(join(tmpdir(), "bh-watch-"));
  const script = `
    const { watchFolder } = await import(${JSON.stringify(join(import.meta.dirname, "watch-folder.ts"))});
    const { writeFileSync } = await import("node:fs");
    const failed = (error) => console.log(error.code);
    using _ = watchFolder(${JSON.stringify(dir)}, (name) => console.log(name ?? "look"), { lookMs: 50, failed });
    writeFileSync(${JSON.stringify(join(dir, "a"))}, "");
    await new Promise((resolve) => setTimeout(resolve, 500));
  `;
  const node = [process.execPath, "--input-type=module", "-e", script];
  const without = ["--user", "--map-root-user", "sh", "-c"];
  // A user namespace has limits of its own.
  const limit = 'echo 0 > /proc/sys/user/max_inotify_instances; exec "$@"';
  const said = execFileSync("unshare", [...without, limit, "sh", ...node], { encoding: "utf8" });
  expect(said).toMatch(/^EMFILE\n(look\n)+$/);
  expect(execFileSync(node[0]!, node.slice(1), { encoding: "utf8" })).toMatch(/^(a\n)+$/);
  rmSync(dir, { recursive: true });
});
