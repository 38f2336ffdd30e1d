import { execFileSync } from "node:child_process";
import { Command } from "commander";
import { expect, test } from "vitest";
import { completion, shells } from "./completion.ts";

const program = new Command("some-program").option("--verbose", "say more");
program.command("serve").option("--config <file>", "the user's $HOME/config");
program.command("version");

test("bash completes commands, and flags of the command that stands there", () => {
  const asked = (line: string): string[] => {
    const words = line.split(" ");
    const script = [
      completion(program, "bash"),
      `COMP_LINE='${line}' COMP_CWORD=${words.length - 1}`,
      `_some_program some-program '${words.at(-1)}'; echo "\${COMPREPLY[@]}"`,
    ].join("\n");
    return execFileSync("bash", ["-c", script], { encoding: "utf8", cwd: "/proc/self/fdinfo" })
      .trim()
      .split(" ");
  };
  expect(asked("some-program se")).toEqual(["serve"]);
  expect(asked("some-program --v")).toEqual(["--verbose"]);
  expect(asked("some-program serve --")).toEqual(["--config", "--help"]);
});

test("what an option says of itself is text to fish, and runs nothing", () => {
  expect(completion(program, "fish")).toContain(`-l config -d 'the user\\'s $HOME/config'`);
});

test("every shell gets a script", () => {
  for (const shell of shells) expect(completion(program, shell)).toContain("serve version");
});
