import { existsSync } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { expect, test } from "vitest";
import { run } from "../tools/run.ts";
import { allBlocks, blocksOf, commandsOf, isYaml, pages, repository } from "./blocks.ts";
import { elsewhere, isRun, otherYaml } from "./elsewhere.ts";

const blocks = await allBlocks();
const commands = blocks.flatMap(commandsOf);

test("blocks are found with where and what they are, and commands without prompts, comments and line ends", () => {
  const page =
    "text\n```sh\na b  # c\n# d\ne \\\n  f\n```\n```console\n$ g\nH  I\n```\n```yaml values\nj: k\n```\n";
  const found = blocksOf("p.md", page);
  expect(found.map(({ line, info }) => [line, info])).toEqual([
    [2, "sh"],
    [8, "console"],
    [12, "yaml values"],
  ]);
  expect(found.flatMap(commandsOf).map(({ text, output }) => [text, output])).toEqual([
    ["a b", ""],
    ["e f", ""],
    ["g", "H  I\n\n"],
  ]);
});

test("every block says what it is", () => {
  const known = ["", "sh", "sh node", "console", "yaml", "yaml values"];
  expect(blocks.filter(({ info }) => !known.includes(info))).toEqual([]);
});

test("every command of the pages is run on a cluster, or is listed with what runs it", () => {
  const unknown = commands.filter(({ text, onNode }) => !onNode && !isRun(text) && !elsewhere[text]);
  expect(unknown.map(({ file, text }) => `${file}: ${text}`)).toEqual([]);
});

test("every YAML of the pages is an object, a part of a RuntimeProfile, values, or listed", () => {
  const unknown = blocks.filter(
    ({ file, info, text }) =>
      info === "yaml" &&
      !/^(#.*\n)*(apiVersion|spec):/.test(text) &&
      !otherYaml[`${file} ${text.split("\n")[0]}`],
  );
  expect(unknown.map(({ file, line }) => `${file}:${line}`)).toEqual([]);
});

test("every ./dev command of the pages is one that ./dev has", async () => {
  const help = await run([process.execPath, join(repository, "test/dev/main.ts"), "--help"]);
  const known = new Set([...help.matchAll(/^ {2}(\w[\w-]*) /gm)].map(([, name]) => name));
  const said = commands.flatMap(
    ({ text }) => /^(?:\w+=\S+ )?\.\/dev (?:--\w+ \S+ )*([\w-]+)/.exec(text)?.[1] ?? [],
  );
  expect(said.length).toBeGreaterThan(10);
  expect(said.filter((name) => !known.has(name))).toEqual([]);
});

test("what is listed stands on a page, and its test is there", () => {
  const said = new Set(commands.map(({ text }) => text));
  expect(Object.keys(elsewhere).filter((command) => !said.has(command))).toEqual([]);
  const yaml = blocks.filter(isYaml).map(({ file, text }) => `${file} ${text.split("\n")[0]}`);
  expect(Object.keys(otherYaml).filter((block) => !yaml.includes(block))).toEqual([]);
  const missing = [...Object.values(elsewhere), ...Object.values(otherYaml)].flatMap(({ test }) =>
    test === undefined || existsSync(join(repository, test)) ? [] : [test],
  );
  expect(missing).toEqual([]);
});

test("docs/profiles.md shows the files of examples/ as they are, or links to them, and no other", async () => {
  const page = await readFile(join(repository, "docs/profiles.md"), "utf8");
  const names = await readdir(join(repository, "examples"));
  const files = await Promise.all(
    names.map(async (name) => [name, await readFile(join(repository, "examples", name), "utf8")] as const),
  );
  const shown = blocksOf("docs/profiles.md", page).filter(isYaml);
  for (const { text, line } of shown)
    expect(
      files.some(([, file]) => file === text),
      `the block of line ${line}`,
    ).toBe(true);
  for (const [name, file] of files)
    expect(page.includes(file) || page.includes(`examples/${name}`), name).toBe(true);
});

test("every link of the pages leads to a file, and every test that they name is there", async () => {
  const broken: string[] = [];
  for (const file of await pages()) {
    const text = await readFile(join(repository, file), "utf8");
    for (const [, to = ""] of text.matchAll(/\]\(([^)#]+)(?:#[^)]*)?\)/g))
      if (!/^https?:/.test(to) && !existsSync(join(repository, dirname(file), to)))
        broken.push(`${file}: ${to}`);
    for (const [to] of text.matchAll(
      /\b(test|operator|node-agent|runtime|kubectl|lib)\/[\w./-]+\.test\.ts\b/g,
    ))
      if (!existsSync(join(repository, to))) broken.push(`${file}: ${to}`);
  }
  expect(broken).toEqual([]);
});
