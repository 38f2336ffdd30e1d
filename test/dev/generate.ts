#!/usr/bin/env node
/**
 * Writes what is generated: lib/gen from lib/proto (buf), crds/ and the chart's crds/ from lib/api.
 * `--check` writes nothing and fails, naming the files, when something committed is not what would be written.
 */
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { customResourceDefinitions } from "@bulkhead/lib/api/crd.ts";
import { dump } from "js-yaml";
import { run } from "../tools/run.ts";

const root = join(import.meta.dirname, "../..");
const { values } = parseArgs({ options: { check: { type: "boolean", default: false } } });

const crds = (): Map<string, string> =>
  new Map(
    Object.entries(customResourceDefinitions).flatMap(([file, crd]) => {
      const text = `# Generated from lib/api by npm run generate. Do not edit.\n${dump(crd, { noRefs: true, lineWidth: 110 })}`;
      return [
        [join("crds", file), text],
        [join("charts/bulkhead/crds", file), text],
      ];
    }),
  );

/** What buf makes of lib/proto. */
const protobuf = async (): Promise<Map<string, string>> => {
  const out = await mkdtemp(join(tmpdir(), "bulkhead-generate-"));
  try {
    await run([join(root, "node_modules/.bin/buf"), "generate", "--output", out], {
      cwd: root,
      env: { PATH: `${join(root, "node_modules/.bin")}:${dirname(process.execPath)}:${process.env.PATH}` },
    });
    const folder = join(out, "lib/gen");
    const files = await readdir(folder);
    return new Map(
      await Promise.all(
        files.map(
          async (file): Promise<[string, string]> => [
            join("lib/gen", file),
            await readFile(join(folder, file), "utf8"),
          ],
        ),
      ),
    );
  } finally {
    await rm(out, { recursive: true, force: true });
  }
};

/** Files that are there and would not be generated any more. */
const leftovers = async (folder: string, wanted: Map<string, string>): Promise<string[]> => {
  const files = await readdir(join(root, folder)).catch(() => []);
  return files.map((file) => join(folder, file)).filter((path) => !wanted.has(path));
};

const wanted = new Map([...(await protobuf()), ...crds()]);
const extra = [
  ...(await leftovers("lib/gen", wanted)),
  ...(await leftovers("crds", wanted)),
  ...(await leftovers("charts/bulkhead/crds", wanted)),
];
const changed: string[] = [];
for (const [path, text] of wanted) {
  if ((await readFile(join(root, path), "utf8").catch(() => undefined)) !== text) changed.push(path);
}

if (values.check) {
  for (const path of changed) process.stderr.write(`${path}: not what npm run generate writes\n`);
  for (const path of extra) process.stderr.write(`${path}: no longer generated\n`);
  process.exitCode = changed.length + extra.length > 0 ? 1 : 0;
} else {
  for (const path of changed) {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await writeFile(join(root, path), wanted.get(path)!);
    process.stdout.write(`${path}\n`);
  }
  for (const path of extra) {
    await rm(join(root, path));
    process.stdout.write(`${path} removed\n`);
  }
}
