import type { Command } from "commander";

/** What kubectl runs to complete a plugin's words: it must be on $PATH as kubectl_complete-bulkhead. */
export const completionScript = `#!/bin/sh
exec kubectl bulkhead __complete -- "$@"
`;

/** Names of the cluster, asked only when a word of that kind is to be completed. */
type Names = { profiles(): Promise<string[]>; nodes(): Promise<string[]> };

/** The words that may stand where the last of `words` does. */
export const candidates = async (program: Command, words: string[], names: Names): Promise<string[]> => {
  const typed = words.at(-1) ?? "";
  let command = program;
  for (const word of words.slice(0, -1))
    command = command.commands.find((each) => each.name() === word) ?? command;
  const begins = (word: string): boolean => word.startsWith(typed);
  if (typed.startsWith("-"))
    return [...command.options, ...program.options]
      .map((option) => option.long ?? "")
      .filter((long) => long !== "" && begins(long));
  const subcommands = command.commands.map((each) => each.name()).filter((name) => !name.startsWith("__"));
  if (subcommands.length > 0) return subcommands.filter(begins);
  const [argument] = command.registeredArguments;
  if (argument?.name() === "profile") return (await names.profiles()).filter(begins);
  if (argument?.name() === "node") return (await names.nodes()).filter(begins);
  return (argument?.argChoices ?? []).filter(begins);
};
