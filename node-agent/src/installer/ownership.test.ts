import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type Host, realIn, resolveIn } from "./host.ts";
import { Ownership } from "./ownership.ts";

let root: string;
let host: Host;
const record = "/opt/bulkhead/installed.json";

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "bh-agent-ownership-"));
  mkdirSync(join(root, "etc"));
  const refuse = () => Promise.reject(new Error("nothing runs here"));
  host = {
    at: (path) => resolveIn(root, path),
    real: (path) => realIn(root, path),
    run: refuse,
    fetch: refuse,
    serveLayout: refuse,
  };
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

/** Every path below the root with its kind, mode and content. */
const listing = (): string[] =>
  readdirSync(root, { recursive: true, withFileTypes: true })
    .map((entry) => {
      const path = join(entry.parentPath, entry.name);
      if (entry.isSymbolicLink()) return `${path} -> ${readlinkSync(path)}`;
      const { mode, mtimeMs } = statSync(path);
      return entry.isDirectory() ? path : `${path} ${mode} ${mtimeMs} ${readFileSync(path, "utf8")}`;
    })
    .sort();

/** A new program after the old one was killed. */
const reopened = async (): Promise<Ownership> => {
  const ownership = new Ownership(host, record);
  await ownership.load();
  return ownership;
};

test("everything that was written goes, and what stood there before is back byte for byte", async () => {
  writeFileSync(join(root, "etc/kubelet.env"), "ARGS=old\n");
  chmodSync(join(root, "etc/kubelet.env"), 0o640);
  utimesSync(join(root, "etc/kubelet.env"), 1000, 1000);
  symlinkSync("old-target", join(root, "etc/link"));
  const before = listing();

  const ownership = await reopened();
  await ownership.write("/etc/kubelet.env", "ARGS=new\n");
  await ownership.write("/etc/kubelet.env", "ARGS=newer\n");
  await ownership.write("/etc/bulkhead/handlers.d/a.yaml", "a");
  await ownership.symlink("/etc/link", "new-target");
  await ownership.tree("/var/lib/bulkhead");
  writeFileSync(join(root, "var/lib/bulkhead/blob"), "b");
  expect(readFileSync(join(root, "etc/kubelet.env"), "utf8")).toBe("ARGS=newer\n");
  expect(statSync(join(root, "etc/kubelet.env")).mode & 0o777).toBe(0o640);

  await (await reopened()).restoreAll();
  expect(listing()).toEqual(before);
});

test("a directory of ours that holds somebody else's file stays with it", async () => {
  const ownership = await reopened();
  await ownership.write("/etc/bulkhead/runtime.yaml", "x");
  writeFileSync(join(root, "etc/bulkhead/theirs"), "keep");
  await ownership.restoreAll();
  expect(readdirSync(join(root, "etc/bulkhead"))).toEqual(["theirs"]);
});

test("a directory that stood there before us is emptied, not removed", async () => {
  mkdirSync(join(root, "var/lib/bulkhead"), { recursive: true });
  const ownership = await reopened();
  await ownership.tree("/var/lib/bulkhead");
  writeFileSync(join(root, "var/lib/bulkhead/blob"), "b");
  await ownership.restoreAll();
  expect(readdirSync(join(root, "var/lib/bulkhead"))).toEqual([]);
});

test("a file that somebody edited meanwhile keeps the edit; only our part of it goes", async () => {
  writeFileSync(join(root, "etc/k"), "endpoint: old\n");
  const ownership = await reopened();
  await ownership.write("/etc/k", "endpoint: ours\n");
  writeFileSync(join(root, "etc/k"), "endpoint: ours\nmore: theirs\n");
  await ownership.restore("/etc/k", (today) => today.replace("ours", "old"));
  expect(readFileSync(join(root, "etc/k"), "utf8")).toBe("endpoint: old\nmore: theirs\n");
});

test("the record is written before the file: a crash between them loses no former bytes", async () => {
  writeFileSync(join(root, "etc/k"), "old");
  const ownership = await reopened();
  // A directory where the temporary file must go makes the write itself fail.
  mkdirSync(join(root, "etc/.k.bulkhead-new"));
  await expect(ownership.write("/etc/k", "new")).rejects.toThrow();
  rmSync(join(root, "etc/.k.bulkhead-new"), { recursive: true });
  const later = await reopened();
  expect(later.record.entries).toContainEqual(
    expect.objectContaining({
      kind: "file",
      path: "/etc/k",
      former: expect.objectContaining({ body: btoa("old") }),
    }),
  );
  await later.restoreAll();
  expect(readFileSync(join(root, "etc/k"), "utf8")).toBe("old");
  expect(existsSync(join(root, "opt"))).toBe(false);
});

test("absolute links of the host are followed inside the host's root", async () => {
  mkdirSync(join(root, "run"));
  mkdirSync(join(root, "var"));
  symlinkSync("/run", join(root, "var/run"));
  const ownership = await reopened();
  await ownership.write("/var/run/file", "x");
  expect(readFileSync(join(root, "run/file"), "utf8")).toBe("x");
});

test("changes of the record that are made side by side are all in it", async () => {
  const ownership = await reopened();
  const names = Array.from({ length: 20 }, (_, i) => `profile-${i}`);
  await Promise.all([
    ...names.map((name) =>
      ownership.update(({ profiles }) => ({
        profiles: { ...profiles, [name]: { revision: "aaaaaaaaaa", files: {} } },
      })),
    ),
    ...names.map((name) => ownership.write(`/etc/bulkhead/${name}`, name)),
  ]);
  const later = await reopened();
  expect(Object.keys(later.record.profiles)).toEqual(names);
  const files = later.record.entries.filter(({ kind }) => kind === "file").map(({ path }) => path);
  expect(new Set(files)).toEqual(new Set(names.map((name) => `/etc/bulkhead/${name}`)));
  await later.restoreAll();
  expect(readdirSync(root, { recursive: true })).toEqual(["etc"]);
});
