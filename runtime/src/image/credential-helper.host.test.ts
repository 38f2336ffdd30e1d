import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { askHelper } from "./credential-helper.ts";

const never = new AbortController().signal;
const path = process.env.PATH;
let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "bh-img-helper-"));
  process.env.PATH = `${dir}${delimiter}${path}`;
});
afterAll(async () => {
  process.env.PATH = path;
  await rm(dir, { recursive: true });
});
const helper = async (name: string, script: string): Promise<void> => {
  await writeFile(join(dir, `docker-credential-${name}`), `#!/bin/sh\n${script}\n`);
  await chmod(join(dir, `docker-credential-${name}`), 0o755);
};

test("A helper's <token> is an identity token; credentials it has not are none", async () => {
  await helper("token", `echo '{"Username":"<token>","Secret":"refresh"}'`);
  expect(await askHelper("token", "r.example", never)).toEqual({ kind: "identity", token: "refresh" });
  await helper("none", `echo "credentials not found in native keychain"; exit 1`);
  expect(await askHelper("none", "r.example", never)).toEqual({ kind: "anonymous" });
});

test("A helper that hangs, floods, fails or is not there ends in an error without its words", async () => {
  await helper("hangs", "sleep 60");
  await expect(askHelper("hangs", "r.example", never, { deadlineMs: 100 })).rejects.toThrow(/too long/);
  await helper(
    "floods",
    "while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done",
  );
  await expect(askHelper("floods", "r.example", never)).rejects.toThrow(/more than 65536 bytes/);
  await helper("fails", "echo s3cret; exit 3");
  await expect(askHelper("fails", "r.example", never)).rejects.toThrow(
    /docker-credential-fails: it ended with 3$/,
  );
  await helper("chats", "echo hello");
  await expect(askHelper("chats", "r.example", never)).rejects.toThrow(/not that of a credential helper/);
  await expect(askHelper("missing", "r.example", never)).rejects.toThrow(/ENOENT/);
});
