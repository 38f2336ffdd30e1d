import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Handler } from "../handler/handler.ts";
import { Handlers } from "./handlers.ts";

let root: string;
let dir: string;
let handlers: Handlers;
beforeEach(async () => {
  root = mkdtempSync(join(tmpdir(), "bh-handlers-"));
  dir = join(root, "handlers.d");
  handlers = new Handlers({
    ...{ builtIn: [], dir, defaultHandler: "runc", log: pino({ level: "silent" }) },
    make: async ({ name }) => ({ name }) as Handler,
  });
  await handlers.start();
});
afterEach(() => {
  handlers[Symbol.dispose]();
  rmSync(root, { recursive: true, force: true });
});

const write = (name: string): void =>
  writeFileSync(join(dir, `${name}.yaml`), `name: ${name}\nkind: oci\nbinary: /usr/bin/${name}\n`);

test("a directory that cannot be read takes no handler away, and is told", async () => {
  write("crun");
  await handlers.reload();
  renameSync(dir, `${dir}.away`);
  writeFileSync(dir, "");
  await handlers.reload();
  expect(handlers.has("crun")).toBe(true);
  expect(handlers.problems()[dir]).toContain("ENOTDIR");
  rmSync(dir);
  renameSync(`${dir}.away`, dir);
  rmSync(join(dir, "crun.yaml"));
  await handlers.reload();
  expect(handlers.has("crun")).toBe(false);
  expect(handlers.problems()).toEqual({});
});
