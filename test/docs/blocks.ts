import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";

export const repository = join(import.meta.dirname, "../..");

/** A fenced block of a page. `info` is what stands behind the fence: the language, and where or what it is. */
export type Block = { file: string; line: number; info: string; text: string };

/** The pages that users read. */
export const pages = async (): Promise<string[]> => [
  "README.md",
  ...(await readdir(join(repository, "docs")))
    .filter((name) => name.endsWith(".md"))
    .map((name) => `docs/${name}`),
];

export const blocksOf = (file: string, markdown: string): Block[] => {
  const found: Block[] = [];
  let open: Block | undefined;
  for (const [at, line] of markdown.split("\n").entries()) {
    const fence = /^```(.*)$/.exec(line);
    if (fence === null) {
      if (open) open.text += `${line}\n`;
    } else if (open) {
      found.push(open);
      open = undefined;
    } else {
      open = { file, line: at + 1, info: (fence[1] ?? "").trim(), text: "" };
    }
  }
  return found;
};

export const allBlocks = async (): Promise<Block[]> =>
  (
    await Promise.all(
      (await pages()).map(async (file) => blocksOf(file, await readFile(join(repository, file), "utf8"))),
    )
  ).flat();

export type Command = {
  file: string;
  text: string;
  /** On a node, not where kubectl runs. */
  onNode: boolean;
  /** What the page shows as its output, where it does. */
  output: string;
};

/**
 * The commands of a block: a line each, or several that end with a backslash, without comments. Where lines begin with
 * "$ ", these alone are commands and the others are what they print.
 */
export const commandsOf = ({ file, info, text }: Block): Command[] => {
  if (!["", "sh", "sh node", "console"].includes(info)) return [];
  const lines = text.replaceAll(/\\\n\s*/g, "").split("\n");
  const prompted = lines.some((line) => line.startsWith("$ "));
  const found: Command[] = [];
  for (const line of lines) {
    if (prompted && !line.startsWith("$ ")) {
      const last = found.at(-1);
      if (last) last.output += `${line}\n`;
      continue;
    }
    const command = line
      .replace(/^\$ /, "")
      .replace(/(^|\s+)# .*$/, "")
      .trim();
    if (command !== "") found.push({ file, text: command, onNode: info === "sh node", output: "" });
  }
  return found;
};

/** Blocks that are configuration. */
export const isYaml = ({ info }: Block): boolean => /^yaml\b/.test(info);
