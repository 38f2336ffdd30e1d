import { createHash } from "node:crypto";
import { dirname } from "node:path";
import { paths } from "@bulkhead/lib/api/paths.ts";
import type { EngineKind, EngineRecord, Reload, UserEdit } from "../engine/engine.ts";
import { installed, ofOneRevision, settingsDirectory, versionDirectory } from "./files.ts";
import { type Edit, type KubeletView, pointAt, type Setting, socketOf } from "./kubelet/setting.ts";
import type { RecordFile } from "./ownership.ts";

/** From what the node is and what it shall be to the steps between. Pure. */

export type Step =
  /** Copies the files of the bundle that are missing or wrong, digest by digest. */
  | { do: "stage"; version: string; files: string[] }
  /** Makes `current` name a version. */
  | { do: "link"; path: string; target: string }
  | { do: "write"; path: string; body: string }
  /** Makes a directory of ours, with all that it will hold. */
  | { do: "tree"; path: string }
  /** Another name of a program, in a tree of ours that goes as a whole. */
  | { do: "alias"; path: string; target: string }
  /** Puts back what stood there before Bulkhead. */
  | { do: "restore"; path: string }
  | { do: "daemon-reload" }
  | { do: "start-runtime"; restart: boolean }
  /** Waits until the runtime answers. */
  | { do: "await-runtime" }
  /** Runs the program of a profile once, with its flags: a broken one never gets as far as a pod. */
  | { do: "check-program"; argv: string[] }
  /** Waits until the runtime offers a handler, or has dropped it. */
  | { do: "await-handler"; handler: string; revision: string; present: boolean }
  | { do: "point-kubelet"; unit: string; former: string; edits: Edit[] }
  | { do: "return-kubelet"; unit: string; former: string; files: string[] }
  /**
   * Removes what is left of these handlers' pods that ended: the kubelet will not come back for them, or too late. On
   * our runtime, or on the engine behind `socket`.
   */
  | { do: "remove-dead-pods"; handlers: string[]; socket?: string }
  | { do: "stop-runtime" }
  /** Unmounts and deletes everything that is Bulkhead's but `keep`; with nothing to keep the node is as it was. */
  | { do: "purge"; keep: string[] }
  | { do: "collect"; version: string }
  /** Remembers which files of the node's own engine hold something of ours. */
  | { do: "record-engine"; record: EngineRecord | undefined }
  /** Changes a file of somebody else; `base` is what is to stand there without us. */
  | { do: "edit"; path: string; body: string; base: string | undefined }
  /** Takes our part out of such a file. */
  | { do: "take-back"; path: string; edit: UserEdit }
  /** The engine reads its files without starting, and shows the handlers. */
  | { do: "check-engine"; kind: EngineKind; argv: string[]; handlers: string[] }
  | { do: "reload-engine"; reload: Reload }
  /** Waits until the engine is ready and offers the handlers. */
  | { do: "await-engine"; socket: string; unit: string; handlers: string[]; restarted: boolean };

export type Facts = {
  record: Readonly<RecordFile>;
  /** The version that `current` names. */
  current: string | undefined;
  versions: string[];
  /** Files of the wanted version that are not there or not what they should be. */
  drifted: string[];
  /** Text of each file that we may write, where there is one. */
  files: ReadonlyMap<string, string>;
  unitActive: boolean;
  /** The unit starts at boot. */
  enabled: boolean;
  /** Of our files, those that somebody else changed or removed. */
  edited: ReadonlySet<string>;
  /** Of these, those changed since the runtime was started: it runs by what they said before. */
  unread: ReadonlySet<string>;
  /** undefined: no kubelet is running. */
  kubelet: { unit: string; view: KubeletView; setting: Setting } | undefined;
};

/** What the engine as a whole needs on the node. */
export type EngineFiles = {
  version: string;
  config: string;
  unit: string;
  /** What the configuration names, path → text: all that is in {@link settingsDirectory}. */
  named: Readonly<Record<string, string>>;
};

/** Files that a configuration named once, and that are not among `named`. */
const unnamed = ({ record }: Pick<Facts, "record">, named: EngineFiles["named"]): Step[] =>
  record.entries
    .filter(
      ({ kind, path }) => kind === "file" && path.startsWith(`${settingsDirectory}/`) && !(path in named),
    )
    .map(({ path }) => ({ do: "restore", path }));

const write = (facts: Pick<Facts, "files">, path: string, body: string): Step[] =>
  facts.files.get(path) === body ? [] : [{ do: "write", path, body }];

/** Programs that one profile's handler runs and nothing else: what is wrong with them is that profile's trouble. */
const isHandlers = (file: string): boolean => /^bin\/(runc|crun|runsc|containerd-shim-.+)$/.test(file);

/** The runtime, up and running in the wanted version. */
export function planEngine(facts: Facts, want: EngineFiles): Step[] {
  // A version that is not there yet comes whole; of the one that is, each profile mends its own programs.
  const ours =
    facts.current === want.version ? facts.drifted.filter((file) => !isHandlers(file)) : facts.drifted;
  const stage: Step[] = ours.length > 0 ? [{ do: "stage", version: want.version, files: ours }] : [];
  const link: Step[] =
    facts.current === want.version
      ? []
      : [{ do: "link", path: installed.current, target: `versions/${want.version}` }];
  const unit = write(facts, installed.unit, want.unit);
  const enable: Step[] = facts.enabled
    ? []
    : [{ do: "link", path: installed.wanted, target: installed.unit }];
  const named = Object.entries(want.named).flatMap(([path, body]) => write(facts, path, body));
  const config = write(facts, paths.config, want.config);
  // Only what the daemon itself has loaded calls for a restart of it.
  const loaded = facts.drifted.some((file) => /^(bin\/node|lib\/|runtime\/)/.test(file));
  const read = [
    ...(unit.length > 0 && !isUnread(facts, installed.unit, want.unit) ? unit : []),
    ...(config.length > 0 && !isUnread(facts, paths.config, want.config) ? config : []),
  ];
  const changed = link.length + read.length + named.length > 0 || loaded;
  const start: Step[] =
    facts.unitActive && !changed ? [] : [{ do: "start-runtime", restart: facts.unitActive }];
  const reload: Step[] = unit.length + enable.length > 0 ? [{ do: "daemon-reload" }] : [];
  return [
    ...[...stage, ...link, ...named, ...config, ...unit, ...enable, ...reload, ...start],
    { do: "await-runtime" },
    ...unnamed(facts, want.named),
  ];
}

/** The runtime was started with `body` in `path`, and what stands there now it has not read. */
function isUnread(facts: Facts, path: string, body: string): boolean {
  const entry = facts.record.entries.find((candidate) => candidate.path === path);
  const sha256 = createHash("sha256").update(body).digest("hex");
  return facts.unread.has(path) && entry?.kind === "file" && entry.sha256 === sha256;
}

/**
 * Back to the version that ran before a failed {@link planEngine}; without one, back to nothing. What somebody else
 * wrote into our files, or took away, never served: of those it is our own text that is put back.
 */
export function planEngineRollback(before: Facts, want: EngineFiles): Step[] {
  if (before.current === undefined) return [{ do: "stop-runtime" }, { do: "purge", keep: kept(before) }];
  const ours = (path: string, wanted: string): string =>
    before.edited.has(path) ? wanted : (before.files.get(path) ?? wanted);
  return [
    { do: "link", path: installed.current, target: `versions/${before.current}` },
    ...Object.keys(want.named).map((path): Step => {
      const body = before.files.get(path);
      return body === undefined ? { do: "restore", path } : { do: "write", path, body };
    }),
    { do: "write", path: paths.config, body: ours(paths.config, want.config) },
    { do: "write", path: installed.unit, body: ours(installed.unit, want.unit) },
    { do: "daemon-reload" },
    { do: "start-runtime", restart: true },
    { do: "await-runtime" },
  ];
}

export type ProfilePlan = {
  name: string;
  revision: string;
  /** Path → text. */
  files: Record<string, string>;
  /** A command line on the host that succeeds when the program runs and takes the profile's flags. */
  check: string[];
  /** The bundle's version, and the handler's programs in it. */
  version: string;
  programs: string[];
  /** Why this node cannot serve the profile as it stands, found by trying. */
  trouble?: string;
};

/** A profile's handler, loaded. Empty when it is already. */
export function planProfile(facts: Facts, want: ProfilePlan): Step[] {
  const writes = Object.entries(want.files).flatMap(([path, body]) => write(facts, path, body));
  const broken = facts.drifted.filter((file) => want.programs.includes(file));
  const stage: Step[] = broken.length > 0 ? [{ do: "stage", version: want.version, files: broken }] : [];
  if (writes.length === 0) {
    return stage.length === 0 ? [] : [...stage, { do: "check-program", argv: want.check }];
  }
  return [
    ...stage,
    { do: "check-program", argv: want.check },
    ...writes,
    { do: "await-handler", handler: want.name, revision: want.revision, present: true },
    // Those of one revision alone stay for its pods: see planStale.
    ...Object.keys(facts.record.profiles[want.name]?.files ?? {})
      .filter((path) => !(path in want.files) && !ofOneRevision.test(path))
      .map((path): Step => ({ do: "restore", path })),
  ];
}

/** The revision that served before a failed {@link planProfile}; without one, no handler. */
export function planProfileRollback(before: Facts, want: Pick<ProfilePlan, "name" | "files">): Step[] {
  const good = before.record.profiles[want.name];
  if (good === undefined) return removal(want.name, Object.keys(want.files));
  const gone = Object.keys(want.files).filter((path) => !(path in good.files));
  return [
    ...Object.entries(good.files).map(([path, body]): Step => ({ do: "write", path, body })),
    ...gone.map((path): Step => ({ do: "restore", path })),
    { do: "await-handler", handler: want.name, revision: good.revision, present: true },
  ];
}

/** Takes a profile's handler away. */
export function planRemoval(facts: Facts, name: string, files: string[]): Step[] {
  if (!files.some((path) => facts.files.has(path))) return [];
  // While its handler is loaded: without it nobody knows how.
  return [{ do: "remove-dead-pods", handlers: [name] }, ...removal(name, files)];
}

/** The same for a handler of the node's own engine, which is told otherwise. */
export const planNodeRemoval = (facts: Facts, name: string, files: string[]): Step[] => {
  const socket = formerSocket(facts);
  const dead: Step[] = socket === undefined ? [] : [{ do: "remove-dead-pods", handlers: [name], socket }];
  return [...dead, ...files.map((path): Step => ({ do: "restore", path }))];
};

/** Whether our runtime is on this node, and not only what the node's own engine runs. */
export const usesRuntime = (facts: Facts): boolean =>
  facts.record.entries.some(({ path }) => path === installed.unit);

const removal = (name: string, files: string[]): Step[] => [
  ...files.map((path): Step => ({ do: "restore", path })),
  { do: "await-handler", handler: name, revision: "", present: false },
];

/** The kubelet, served by Bulkhead. Throws when its setting cannot be found or changed. */
export function planKubelet(facts: Facts): Step[] {
  if (facts.kubelet === undefined) return [];
  const { unit, view, setting } = facts.kubelet;
  const edits = pointAt(view, `unix://${paths.socket}`);
  if (edits.length === 0) return [];
  return [{ do: "point-kubelet", unit, former: facts.record.kubelet?.former ?? setting.value, edits }];
}

/** The engine that Bulkhead fronts, as the kubelet named it. */
export function formerEndpoint(facts: Facts): string | undefined {
  return facts.record.kubelet?.former ?? facts.kubelet?.setting.value;
}

/** The socket of {@link formerEndpoint}. */
export function formerSocket(facts: Facts): string | undefined {
  const endpoint = formerEndpoint(facts);
  return endpoint === undefined ? undefined : socketOf(endpoint);
}

/** Whether the kubelet's setting names us, whatever the record says. */
export const isFronted = (facts: Facts): boolean =>
  facts.kubelet !== undefined && socketOf(facts.kubelet.setting.value) === paths.socket;

/** What the handlers of the node's own engine stand on. */
function kept({ record }: Facts): string[] {
  const onNode = Object.values(record.profiles).filter(({ handler }) => handler !== undefined);
  if (record.engine === undefined && onNode.length === 0) return [];
  const programs = onNode.flatMap(({ handler }) => [handler?.program, handler?.shim, handler?.alias]);
  return [
    installed.record,
    // A version is one tree: programs of one handler keep all of it.
    ...programs.filter((path) => path !== undefined).map((path) => dirname(dirname(path))),
    ...onNode.flatMap(({ handler }) => handler?.directory ?? []),
    ...onNode.flatMap(({ files }) => Object.keys(files)),
    ...(record.engine?.own ?? []),
    ...(record.engine?.edited ?? []).map(({ path }) => path),
  ];
}

/**
 * The node without our runtime, and as it was before Bulkhead unless its own engine has handlers of ours. Call only
 * when no pod of our runtime's is left.
 */
export function planLeave(facts: Facts): Step[] {
  const { kubelet, entries, profiles } = facts.record;
  const ours = Object.keys(profiles).filter((name) => profiles[name]?.handler === undefined);
  if (entries.length === 0 && kubelet === undefined) return [];
  return [
    ...(facts.unitActive ? [{ do: "remove-dead-pods", handlers: ours } as const] : []),
    ...(kubelet === undefined ? [] : [{ do: "return-kubelet", ...kubelet } as const]),
    { do: "stop-runtime" },
    { do: "purge", keep: kept(facts) },
  ];
}

/** Files of revisions that serve no more and that no pod's record (`records`, as text) leads to. */
export const planStale = ({ record }: Pick<Facts, "record">, records: string): Step[] => {
  const served = new Set(Object.values(record.profiles).flatMap(({ files }) => Object.keys(files)));
  return record.entries
    .filter(({ kind, path }) => kind === "file" && ofOneRevision.test(path) && !served.has(path))
    .filter(({ path }) => !records.includes(path))
    .map(({ path }) => ({ do: "restore", path }));
};

/** Versions that nothing refers to any more. `busy`: versions that a running process was started from. */
export function planCollect(facts: Facts, wanted: string, busy: ReadonlySet<string>): Step[] {
  const referred = [
    ...facts.files.values(),
    ...Object.values(facts.record.profiles).flatMap((good) => Object.values(good.files)),
  ];
  return facts.versions
    .filter((version) => version !== wanted && version !== facts.current && !busy.has(version))
    .filter((version) => !referred.some((text) => text.includes(versionDirectory(version))))
    .map((version) => ({ do: "collect", version }));
}
