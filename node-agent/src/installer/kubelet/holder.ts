import { basename } from "node:path";

/**
 * Which process holds the node's kubelet: one of its own, or a distribution's that runs it as a part of itself. Of the
 * latter neither shows the kubelet's command line; what it is told is found where the distribution has it. Pure.
 */

/** `process`: it is one of its own, with its flags on its command line. */
export type Holder = "process" | "k3s" | "microk8s";

/** A kubelet that runs as a systemd service, as it was found. `argv` and `program` are the holder's. */
export type RunningKubelet = { pid: number; argv: string[]; unit: string; program: string; inside: Holder };

/** What a process with this command line is to the kubelet; undefined: nothing. */
export function holderOf(argv: string[]): Holder | undefined {
  // k3s writes its title over its arguments: program and subcommand are one word then.
  const [program = "", ...words] = argv.join(" ").split(/\s+/);
  const name = basename(program);
  if (name === "kubelet") return "process";
  if (name === "kubelite") return "microk8s";
  const command = words.find((word) => !word.startsWith("-"));
  return /^k3s\b/.test(name) && (command === "server" || command === "agent") ? "k3s" : undefined;
}

/** Why such a kubelet cannot be served by our own runtime, whatever is tried; undefined: it can, or none runs. */
export function notServable(
  kubelet: Pick<RunningKubelet, "inside" | "unit"> | undefined,
): string | undefined {
  if (kubelet === undefined || kubelet.inside === "process") return undefined;
  return `the kubelet runs inside ${kubelet.inside} (${kubelet.unit}), which gives it its own containerd; expected engine: node`;
}

/** The end of a program's path that k3s was unpacked to, below its data directory. */
const unpacked = /\/data\/[^/]+\/bin\/[^/]+$/;

/**
 * The kubelet inside k3s: the flags that lead to its files, and its endpoint where those name none (until 1.31 it is on
 * no file at all). `program`: k3s' own, which runs from its data directory.
 */
export function k3sKubelet(program: string): { argv: string[]; endpoint: string } {
  const data = unpacked.test(program) ? program.replace(unpacked, "") : "/var/lib/rancher/k3s";
  return {
    argv: [`--config-dir=${data}/agent/etc/kubelet.conf.d`],
    endpoint: "unix:///run/k3s/containerd/containerd.sock",
  };
}

/** The file that kubelite takes the kubelet's arguments from. */
export const kubeliteArgsFile = (argv: string[]): string =>
  argv.findLast((word) => word.startsWith("--kubelet-args-file="))?.replace(/^[^=]*=/, "") ??
  "/var/snap/microk8s/current/args/kubelet";

/**
 * The kubelet's command line as kubelite makes it of the file's text: words by spaces, quotes and comments left out,
 * variables of its own environment put in. `environ`: as in /proc/PID/environ.
 */
export function kubeliteArgs(text: string, environ: string): string[] {
  const variables = new Map(
    environ.split("\0").map((entry) => {
      const at = entry.indexOf("=");
      return [entry.slice(0, at), entry.slice(at + 1)] as const;
    }),
  );
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "" && !line.startsWith("#"))
    .flatMap((line) => line.replaceAll(/["']/g, "").split(" "))
    .map((word) =>
      word.replaceAll(
        /\$(?:\{([^}]*)\}|(\w+))/g,
        (_, braced?: string, bare?: string) => variables.get(braced ?? bare ?? "") ?? "",
      ),
    );
}
