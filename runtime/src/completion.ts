import type { Command } from "commander";

/** A bash completion script for a program's commands and flags. */
export const bashCompletion = (program: Command): string => {
  const name = program.name();
  const words = (command: Command): string =>
    [
      ...command.commands.map((each) => each.name()),
      ...command.options.map((option) => option.long ?? ""),
      "--help",
    ].join(" ");
  const cases = program.commands.map((command) => `    ${command.name()}) words="${words(command)}" ;;`);
  const shellName = name.replaceAll("-", "_");
  return `# bash completion of ${name}: source it, or put it into /etc/bash_completion.d
_${shellName}() {
  local words
  case "\${COMP_WORDS[1]}" in
${cases.join("\n")}
    *) words="${words(program)}" ;;
  esac
  [ "$COMP_CWORD" -eq 1 ] && words="${words(program)}"
  COMPREPLY=($(compgen -W "$words" -f -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -F _${shellName} ${name}
`;
};
