import type { Command } from "commander";

const words = (command: Command): string[] => [
  ...command.commands.map((sub) => sub.name()),
  ...command.options.map((option) => option.long).filter((long) => long !== undefined && long !== null),
  "--help",
];

/** The shells that {@link completion} knows. */
export const shells = ["bash", "zsh", "fish"] as const;

/** A completion script of the program's commands and flags, to be sourced by the shell. Files complete where no word does. */
export const completion = (program: Command, shell: (typeof shells)[number]): string => {
  const name = program.name();
  const subs = program.commands;
  if (shell === "fish") {
    return [
      `complete -c ${name} -n __fish_use_subcommand -a "${subs.map((sub) => sub.name()).join(" ")}"`,
      ...subs.flatMap((sub) =>
        sub.options.map(
          (option) =>
            `complete -c ${name} -n "__fish_seen_subcommand_from ${sub.name()}" -l ${option.long?.slice(2)} -d '${option.description.replaceAll("'", "\\'")}'`,
        ),
      ),
      "",
    ].join("\n");
  }
  const fn = `_${name.replace(/[^a-z0-9]/g, "_")}`;
  const bash = [
    `${fn}() {`,
    '  local words="" word="$2"',
    '  case "$COMP_LINE" in',
    ...subs.map((sub) => `    "${name} ${sub.name()} "*) words="${words(sub).join(" ")}" ;;`),
    "  esac",
    `  [ "$COMP_CWORD" -eq 1 ] && words="${words(program).join(" ")}"`,
    '  COMPREPLY=($(compgen -W "$words" -f -- "$word"))',
    "}",
    `complete -F ${fn} ${name}`,
    "",
  ].join("\n");
  return shell === "zsh" ? `autoload -U +X bashcompinit && bashcompinit\n${bash}` : bash;
};
