import { dirname, join } from "node:path";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { addImport, importsOf, parse, setBlock, stringify, takeBack } from "./edits.ts";
import {
  type Adapter,
  type Change,
  type Engine,
  type EngineHandler,
  type EngineRecord,
  flagOf,
  header,
  numbersOf,
  refuseKind,
  refuseTaken,
  type UserEdit,
} from "./engine.ts";

/**
 * containerd 1.6 to 2.x, and its distributions. A file of ours holds the handlers; where no `imports` of the
 * configuration covers it, one entry is added there.
 *
 * Until 1.7 an imported file *replaces* the CRI plugin's whole section: then ours carries what the files before it
 * say there, with our handlers added. From 2.0 sections are merged, and ours carries the handlers alone.
 */

type Table = Record<string, unknown>;

const plugin = { 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime" } as const;

const mainFile = (argv: string[]): string => flagOf(argv, "--config", "-c") ?? "/etc/containerd/config.toml";

/** k3s and rke2 write their file anew at each start, from a template or with imports. */
const isRancher = (main: string): boolean => /\/agent\/etc\/containerd\/config\.toml$/.test(main);
const templates = (main: string): [v2: string, v3: string] => [
  join(dirname(main), "config.toml.tmpl"),
  join(dirname(main), "config-v3.toml.tmpl"),
];
/**
 * microk8s writes its file anew at each start, from a template beside it, in a directory named by the snap's revision. A
 * refresh copies that directory with our entry in it, and removes the one before later: what the entry names is elsewhere.
 */
const snapImport = "/etc/bulkhead/containerd.toml";
const snapTemplate = (main: string): string | undefined =>
  /^\/var\/snap\/microk8s\/[^/]+\/args\/containerd\.toml$/.test(main)
    ? join(dirname(main), "containerd-template.toml")
    : undefined;

const tableOf = (value: unknown): Table =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Table) : {};

function read(path: string, body: string): Table {
  try {
    return parse(body);
  } catch (error) {
    const why = error instanceof Error ? error.message.split("\n")[0] : "";
    throw new RuntimeError("failed-precondition", `Cannot read containerd's "${path}": ${why}`, {
      cause: error,
    });
  }
}

/** The paths that an entry of imports stands for, of those that are there. */
function matches(entry: string, parent: string, files: Iterable<string>): string[] {
  const pattern = entry.startsWith("/") ? entry : join(dirname(parent), entry);
  if (!pattern.includes("*")) return [pattern];
  const regex = new RegExp(`^${pattern.split("*").map(RegExp.escape).join("[^/]*")}$`);
  return [...files].filter((file) => regex.test(file)).sort();
}

/** The files in the order in which containerd reads them: later ones win. */
function inOrder(main: string, files: ReadonlyMap<string, string>): [string, Table][] {
  const seen = new Map<string, Table>();
  for (const pending = [main]; pending.length > 0; ) {
    const path = pending.shift() ?? "";
    const body = files.get(path);
    if (seen.has(path) || body === undefined) continue;
    const table = read(path, body);
    seen.set(path, table);
    pending.push(...importsOf(table).flatMap((entry) => matches(entry, path, files.keys())));
  }
  return [...seen];
}

/** The CRI plugin's section as the files give it, without ours. */
function criSection(read: [string, Table][], key: string, merged: boolean): Table {
  const sections = read
    .map(([, table]) => tableOf(table.plugins)[key])
    .filter((section) => section !== undefined)
    .map(tableOf);
  return merged ? sections.reduce(merge, {}) : (sections.at(-1) ?? {});
}

const merge = (under: Table, over: Table): Table => ({
  ...under,
  ...Object.fromEntries(
    Object.entries(over).map(([key, value]) => {
      const both = isTable(under[key]) && isTable(value);
      return [key, both ? merge(tableOf(under[key]), tableOf(value)) : value];
    }),
  ),
});
const isTable = (value: unknown): boolean =>
  typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date);

/** The runtime of pods that name none. */
function defaultOf(section: Table): string {
  const name = tableOf(section.containerd).default_runtime_name;
  return typeof name === "string" && name !== "" ? name : "runc";
}

/** A shim's own words; runc's shim takes those of containerd. */
const shims = {
  gvisor: { runtimeType: "io.containerd.runsc.v1", optionsType: "io.containerd.runsc.v1.options" },
  vm: { runtimeType: "io.containerd.kata.v2", optionsType: "io.containerd.kata.v2.options" },
} as const;

type Told = {
  section: Table;
  version: [major: number, minor: number];
  /** It reads a shim's runtime_path and starts the shim that it finds by the runtime's type all the same. */
  ignoresPath: boolean;
  snapshotter: string | undefined;
};

function runtimeOf(handler: EngineHandler, told: Told): Table {
  const { kind, program, config } = handler;
  if (kind === "runc" || kind === "crun") {
    if (handler.args.length > 0)
      refuseKind(
        "containerd",
        handler,
        `it starts ${kind} without flags, and handler.${kind}.flags are given`,
      );
    return { runtime_type: "io.containerd.runc.v2", options: { BinaryName: program, ...cgroups(told) } };
  }
  const { runtimeType, optionsType } = kind === "shim" ? handler : shims[kind];
  const runcs = runtimeType?.startsWith("io.containerd.runc.") === true;
  if (runcs && config !== undefined)
    refuseKind(
      "containerd",
      handler,
      "the options of runc's shim are containerd's own, and handler.shim.options are given",
    );
  const shim = handler.shim ?? program;
  if (runcs && told.ignoresPath)
    refuseKind("containerd", handler, "runc's shim by its path needs containerd 1.6.21 or 1.7.1");
  return {
    // A path is a type, too; not for runc's shim, whose options go by the type's name.
    ...(told.ignoresPath ? { runtime_type: shim } : { runtime_type: runtimeType, runtime_path: shim }),
    ...(handler.annotations.length === 0 ? {} : { pod_annotations: handler.annotations }),
    // Otherwise Kata plugs every disk of the node into the machine of a privileged pod.
    ...(kind === "vm" ? { privileged_without_host_devices: true } : {}),
    ...(handler.disks === true ? { snapshotter: disksOf(handler, told) } : {}),
    ...(handler.sandboxApi === true ? sandboxer(handler, told) : {}),
    ...(runcs ? { options: cgroups(told) } : {}),
    ...(config === undefined ? {} : { options: { TypeUrl: optionsType, ConfigPath: config } }),
  };
}

/** Pods of one kubelet have one cgroup driver: that of the engine's own runtime. */
function cgroups({ section }: Told): Table {
  const runtimes = tableOf(tableOf(section.containerd).runtimes);
  const { SystemdCgroup } = tableOf(tableOf(runtimes[defaultOf(section)]).options);
  return SystemdCgroup === undefined ? {} : { SystemdCgroup };
}

function disksOf(handler: EngineHandler, { snapshotter, version: [major, minor] }: Told): string {
  if (major === 1 && minor < 7)
    refuseKind(
      "containerd",
      handler,
      "its root file systems are disks, and a snapshotter of one handler needs containerd 1.7",
    );
  return (
    snapshotter ??
    refuseKind(
      "containerd",
      handler,
      "its root file systems are disks, and neither the snapshotter devmapper (pool_name) nor blockfile (scratch_file) is configured",
    )
  );
}

function sandboxer(handler: EngineHandler, { version: [major, minor] }: Told): Table {
  if (major >= 2) return { sandboxer: "shim" };
  if (minor >= 7) return { sandbox_mode: "shim" };
  return refuseKind("containerd", handler, "handler.shim.sandboxApi needs containerd 1.7");
}

/** The snapshotter that gives disks, as the files configure one. */
function snapshotterOf(order: [string, Table][]): string | undefined {
  const has = (name: string, key: string): boolean =>
    order.some(([, table]) => {
      const value = tableOf(tableOf(table.plugins)[`io.containerd.snapshotter.v1.${name}`])[key];
      return typeof value === "string" && value !== "";
    });
  if (has("devmapper", "pool_name")) return "devmapper";
  return has("blockfile", "scratch_file") ? "blockfile" : undefined;
}

function plan(engine: Engine, handlers: EngineHandler[], record: EngineRecord | undefined): Change {
  const { argv, files, unit, program } = engine;
  const [major, minor] = numbersOf(engine.version);
  if (major < 1 || (major === 1 && minor < 6) || major > 2) {
    throw new RuntimeError(
      "failed-precondition",
      `Cannot configure containerd ${engine.version}: expected a version from 1.6 to 2.x`,
    );
  }
  const main = mainFile(argv);
  const written = new Set(record?.own);
  // What we added to somebody's file is not theirs.
  const theirs = new Map([...files].filter(([path]) => !written.has(path)));
  for (const { path, edit } of record?.edited ?? []) {
    const body = theirs.get(path);
    if (body !== undefined) theirs.set(path, takeBack(edit, body));
  }
  const k0s = main === "/etc/k0s/containerd.toml" && /^#\s*k0s_managed=true/m.test(files.get(main) ?? "");
  const sparse = major >= 2 || k0s;
  const body = theirs.get(main);
  const order = inOrder(main, theirs);
  const top = order[0]?.[1] ?? {};
  const version = Number(top.version ?? (body === undefined ? (sparse ? 3 : 2) : 1));
  if (version < 2) {
    throw new RuntimeError(
      "failed-precondition",
      `Cannot add handlers to "${main}": it is of configuration version 1; rewrite it with "containerd config migrate"`,
    );
  }
  const key = version === 2 ? plugin[2] : plugin[3];
  const section = criSection(order, key, sparse);
  // What distributions write from their templates and drop-ins holds our entries too.
  const rendered = k0s || isRancher(main) || snapTemplate(main) !== undefined;
  const isOurs = (name: string, entry: Table): boolean =>
    (rendered && record?.handlers.includes(name) === true) ||
    [entry.runtime_type, entry.runtime_path, tableOf(entry.options).BinaryName].some(
      (path) => typeof path === "string" && path.startsWith(`${paths.opt}/`),
    );
  for (const { name } of handlers) {
    const taken = order.find(([, table]) => {
      const section = tableOf(tableOf(table.plugins)[key]);
      const entry = tableOf(tableOf(section.containerd).runtimes)[name];
      return entry !== undefined && !isOurs(name, tableOf(entry));
    });
    if (taken !== undefined) refuseTaken(name, taken[0]);
  }
  const told: Told = {
    section,
    version: [major, minor],
    ignoresPath: /^v?1\.(6\.(1?[0-9]|20)|7\.0)(?![0-9])/.test(engine.version),
    snapshotter: snapshotterOf(order),
  };
  const runtimes = Object.fromEntries(handlers.map((handler) => [handler.name, runtimeOf(handler, told)]));
  const ours = { containerd: { runtimes } };
  const own = tableOf(tableOf(section.containerd).runtimes);
  const fallback = defaultOf(section);
  // A table of runtimes takes the place of the built-in one in 1.x: the default has to stand in it too.
  const builtIn = { containerd: { runtimes: { [fallback]: { runtime_type: "io.containerd.runc.v2" } } } };
  const full = sparse || own[fallback] !== undefined ? section : merge(builtIn, section);
  const tables = (whole: boolean): Table => ({ [key]: whole ? merge(full, ours) : ours });
  const text = (whole: boolean): string =>
    header + stringify({ version: BigInt(version), plugins: tables(whole) });
  const check = [program, "--config", main, "config", "dump"];
  const keeps = [
    fallback,
    ...Object.keys(own).filter((name) => name !== fallback && !isOurs(name, tableOf(own[name]))),
  ];
  const restart: Change["reload"] = { by: "restart", unit };
  const nothing = handlers.length === 0;
  const change = (path: string, whole: boolean, rest: Omit<Change, "own" | "keeps">): Change => ({
    ...rest,
    keeps,
    own: nothing ? {} : { [path]: text(whole) },
    edits: nothing ? [] : rest.edits,
  });

  if (k0s) {
    // k0s merges the files of that directory itself, and restarts its containerd when one changes.
    return change("/etc/k0s/containerd.d/bulkhead.toml", false, {
      edits: [],
      reload: { by: "itself", unit },
    });
  }
  if (body === undefined) return change(main, false, { edits: [], reload: restart, check });

  const glob = order
    .flatMap(([path, table]) => importsOf(table).map((entry) => ({ path, entry })))
    .filter(({ entry }) => /^[^*]*\/\*\.toml$/.test(entry))
    .at(-1);
  // In 1.x the last file with the section is the one that counts: ours sorts last.
  if (glob !== undefined) {
    const directory = dirname(glob.entry.startsWith("/") ? glob.entry : join(dirname(glob.path), glob.entry));
    return change(join(directory, "zz-bulkhead.toml"), !sparse, { edits: [], reload: restart, check });
  }
  if (isRancher(main))
    return planTemplate(main, version, theirs, stringify({ plugins: tables(false) }), nothing, {
      keeps,
      reload: restart,
    });

  const source = snapTemplate(main) ?? main;
  const found = theirs.get(source);
  if (found === undefined) {
    throw new RuntimeError("failed-precondition", `Cannot find "${source}", which "${main}" is written from`);
  }
  const file = source === main ? join(dirname(main), "bulkhead.toml") : snapImport;
  const edit: UserEdit = { kind: "import", file };
  const base = takeBack(edit, found);
  return change(file, !sparse, {
    edits: [{ path: source, edit, base, after: addImport(base, file) }],
    reload: restart,
    // A template becomes the file only at the next start.
    ...(source === main ? { check } : {}),
  });
}

/** k3s and rke2 before their directories of drop-ins: our tables after the base of their template. */
function planTemplate(
  main: string,
  version: number,
  files: ReadonlyMap<string, string>,
  tables: string,
  nothing: boolean,
  rest: Pick<Change, "keeps" | "reload">,
): Change {
  const path = templates(main)[version === 2 ? 0 : 1];
  const base = files.get(path);
  if (nothing) return { ...rest, own: {}, edits: [] };
  if (base === undefined)
    return { ...rest, own: { [path]: `{{ template "base" . }}\n\n${header}${tables}` }, edits: [] };
  const edit: UserEdit = { kind: "block" };
  return { ...rest, own: {}, edits: [{ path, edit, base, after: setBlock(base, tables) }] };
}

export const containerd: Adapter = {
  reads: (argv) => {
    const main = mainFile(argv);
    const template = snapTemplate(main);
    return [main, ...(isRancher(main) ? templates(main) : []), ...(template === undefined ? [] : [template])];
  },
  more: (argv, files) => {
    if (!files.has(mainFile(argv))) return [];
    // One that is no TOML names nothing; plan() says so.
    const imports = (text: string): string[] => {
      try {
        return importsOf(parse(text));
      } catch {
        return [];
      }
    };
    return [...files].flatMap(([path, text]) =>
      path.endsWith(".tmpl") || path.endsWith("-template.toml")
        ? []
        : imports(text).map((entry) =>
            (entry.startsWith("/") ? entry : join(dirname(path), entry)).replace(/\/[^/]*\*[^/]*$/, "/*"),
          ),
    );
  },
  plan,
  registries: ({ argv, files, version }) => {
    const order = inOrder(mainFile(argv), files);
    const [major] = numbersOf(version);
    // By the version of the file: 2 or 3.
    const paths = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"].map(
      (key) => tableOf(criSection(order, key, major >= 2).registry).config_path,
    );
    // It may be a list, as PATH is one; the runtime has one directory.
    return paths
      .flatMap((path) => (typeof path === "string" ? path.split(":") : []))
      .find((path) => path.startsWith("/"));
  },
  shown: (output) =>
    Object.values(tableOf(parse(output).plugins)).flatMap((section) =>
      Object.keys(tableOf(tableOf(tableOf(section).containerd).runtimes)),
    ),
};
