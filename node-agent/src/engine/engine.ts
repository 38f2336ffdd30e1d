import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { z } from "zod";

/** The node's own engine and what is to be told to it. Types and values; no I/O. */

export const engineKinds = ["containerd", "crio", "docker"] as const;
export type EngineKind = (typeof engineKinds)[number];

/** The engine that serves the kubelet, as it was found: its process, its unit, its files. */
export type Engine = {
  kind: EngineKind;
  /** Of its CRI Version, such as 1.6.20~ds1 or v2.4.2. */
  version: string;
  /** The kubelet's CRI socket. */
  socket: string;
  /** The daemon that reads the configuration. Behind cri-dockerd that is dockerd. */
  pid: number;
  argv: string[];
  /** The daemon's program, an absolute path of the host. */
  program: string;
  unit: string;
  /** systemd's KillMode of the unit: with any other than process a restart ends containers. */
  killMode: string;
  /** When the daemon was started, in milliseconds of Date.now(). */
  startedAt: number;
  /** Text of every file that its configuration may come from, by the host's path. */
  files: ReadonlyMap<string, string>;
};

/** A handler as an engine is told of it; each adapter writes it in its engine's words. */
export const EngineHandler = z.object({
  /** The profile's name, which is the RuntimeClass' handler. */
  name: z.string(),
  /** `vm` is Kata, whatever machine it runs; `shim` any other containerd shim. */
  kind: z.enum(["runc", "crun", "gvisor", "vm", "shim"]),
  /** The OCI runtime; of `vm` and `shim` the shim. An absolute path of the host. */
  program: z.string(),
  /** gVisor's shim for containerd and CRI-O. */
  shim: z.string().optional(),
  /** Of `shim`: as containerd names it, such as io.containerd.NAME.v1. */
  runtimeType: z.string().optional(),
  /** Of `shim`: what its configuration file is called in the options. */
  optionsType: z.string().optional(),
  /** The shim's configuration file. */
  config: z.string().optional(),
  /** Arguments of the OCI runtime, where the engine starts it itself (Docker). */
  args: z.array(z.string()).default([]),
  /** Annotations that a pod may pass to the runtime, as globs. */
  annotations: z.array(z.string()).default([]),
  /** Containers' root file systems come as disks, which the engine's snapshots have to be. */
  disks: z.boolean().optional(),
  /** The shim makes the pod by the sandbox API. */
  sandboxApi: z.boolean().optional(),
  /** A directory of ours that it writes to. */
  directory: z.string().optional(),
  /** Another name of the shim, where CRI-O refuses its own. */
  alias: z.string().optional(),
});
export type EngineHandler = z.infer<typeof EngineHandler>;

/** A change of a file that somebody else owns, so that it can be found and taken out again. */
export const UserEdit = z.discriminatedUnion("kind", [
  /** An entry of `imports` in a TOML file. */
  z.object({ kind: z.literal("import"), file: z.string() }),
  /** Lines between our marks at the end of a template. */
  z.object({ kind: z.literal("block") }),
  /** Entries of `runtimes` in a JSON file. */
  z.object({ kind: z.literal("runtimes"), names: z.array(z.string()) }),
]);
export type UserEdit = z.infer<typeof UserEdit>;

/** Which files of the engine's are ours or hold something of ours. */
export const EngineRecord = z.object({
  kind: z.enum(engineKinds),
  own: z.array(z.string()),
  edited: z.array(z.object({ path: z.string(), edit: UserEdit })),
  /** The handlers that it was told of. */
  handlers: z.array(z.string()).default([]),
  /** A change was begun and not ended: what its files say it has perhaps not read. */
  pending: z.boolean().optional(),
});
export type EngineRecord = z.infer<typeof EngineRecord>;

/** How an engine takes up what its files say. */
export type Reload =
  | { by: "restart"; unit: string }
  /** SIGHUP to its process: nothing is restarted, unless what it is `asked` then says that it did not do. */
  | { by: "hup"; pid: number; unit: string; asked?: Asked }
  /** It looks at its files itself. */
  | { by: "itself"; unit: string };

/** What an engine is asked that may show more than it has taken up. */
export type Asked = {
  /** Its CRI socket. */
  socket: string;
  /** Handlers that are new, or other ones than before. */
  comes: string[];
  /** Handlers that it is to have no more. */
  goes: string[];
  /** Why it must not be restarted, where that is so. */
  stays?: string;
};

/** What an engine's files shall be for a list of handlers. */
export type Change = {
  /** Files that are ours: path → text. */
  own: Record<string, string>;
  /** Files of somebody else: `base` is the text without us, undefined where there is no file. */
  edits: { path: string; edit: UserEdit; base: string | undefined; after: string }[];
  reload: Reload;
  /** Handlers that the engine has and must not lose by this. */
  keeps: string[];
  /** A command line that prints the configuration as the engine would read it; see {@link Adapter.shown}. */
  check?: string[];
};

/** How one kind of engine is configured. Pure. */
export type Adapter = {
  /** Files to read before anything can be planned; a name that ends in /* is every file of that directory. */
  reads(argv: string[]): string[];
  /** Further files that the texts read so far name. */
  more(argv: string[], files: ReadonlyMap<string, string>): string[];
  /** Throws failed-precondition, naming the file and why, where the engine cannot be told. */
  plan(engine: Engine, handlers: EngineHandler[], record: EngineRecord | undefined): Change;
  /** The directory of HOST/hosts.toml files that it pulls by; undefined where it has none, or another form of them. */
  registries?(engine: Pick<Engine, "argv" | "files" | "version">): string | undefined;
  /** Handlers that the output of {@link Change.check} shows. */
  shown(output: string): string[];
};

/** The value of the last `--name=value`, `--name value` or `-n value` of a command line. */
export function flagOf(argv: string[], ...names: string[]): string | undefined {
  let value: string | undefined;
  argv.forEach((argument, at) => {
    for (const name of names) {
      if (argument === name) value = argv[at + 1];
      else if (argument.startsWith(`${name}=`)) value = argument.slice(name.length + 1);
    }
  });
  return value === "" ? undefined : value;
}

/** Major and minor number of a version. */
export function numbersOf(version: string): [major: number, minor: number] {
  const match = /^v?([0-9]+)\.([0-9]+)/.exec(version);
  return match === null ? [0, 0] : [Number(match[1]), Number(match[2])];
}

export const header = "# Written by Bulkhead's node agent; changes are overwritten.\n";

/** An engine that has no way to serve such a handler; the profile is to say so, and the others go on. */
export function refuseKind(engine: string, { name }: EngineHandler, why: string): never {
  throw new RuntimeError("unimplemented", `Cannot tell ${engine} of "${name}": ${why}; use engine: bulkhead`);
}

/** Someone else's handler of that name is not replaced. */
export function refuseTaken(name: string, file: string): never {
  throw new RuntimeError(
    "already-exists",
    `Cannot add handler "${name}": "${file}" has one of that name that is not Bulkhead's; rename the profile or that handler`,
  );
}
