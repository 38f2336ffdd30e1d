import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as yaml from "js-yaml";

/**
 * Where the kubelet's CRI endpoint is set, and how to set it to another. Pure.
 *
 * The kubelet's own order (k8s.io/kubernetes/cmd/kubelet/app/server.go): a flag wins over the drop-in directory
 * (--config-dir, *.conf in it and below, in the order of a walk), which wins over the file (--config), which wins over
 * the default. We find the place in force, change that alone, and parse the result again to see that nothing else
 * changed.
 */

export type TextFile = { path: string; body: string };

export type KubeletView = {
  /** Command line of the running kubelet. */
  argv: string[];
  /** Files that its flags may come from: the unit, its drop-ins, its environment files. */
  flagFiles: TextFile[];
  /** The file of --config. */
  config?: TextFile;
  /** The directory of --config-dir with the *.conf files in it and below, in the order in which the kubelet reads them. */
  dropins?: { directory: string; files: TextFile[] };
  /** Its endpoint where nothing sets it, of a kubelet that has another default than the kubelet's own. */
  fallback?: string;
};

export type Setting = {
  value: string;
  from: "flag" | "drop-in" | "config" | "default";
  /** Where it stands; none for the default. */
  files: string[];
};

/** A change of one file. `before` undefined: the file is made. */
export type Edit = { path: string; before: string | undefined; after: string };

/** kubelet's default since 1.27. */
const defaultEndpoint = "unix:///run/containerd/containerd.sock";
const ownDropin = "99-bulkhead.conf";

const keys = {
  runtime: { flag: "container-runtime-endpoint", field: "containerRuntimeEndpoint" },
  image: { flag: "image-service-endpoint", field: "imageServiceEndpoint" },
} as const;
type Key = { flag: string; field: string };

/** The order in which a walk comes to paths: each directory's names are sorted, and one is walked where its name stands. */
export const byWalk = (one: string, other: string): number => {
  const [a, b] = [one.split("/"), other.split("/")];
  const at = a.findIndex((part, index) => part !== b[index]);
  const [left = "", right = ""] = [a[at], b[at]];
  if (at === -1) return a.length - b.length;
  return left < right ? -1 : 1;
};

/** The socket's path in an endpoint, which may be written with or without the scheme. */
export const socketOf = (endpoint: string): string => endpoint.replace(/^unix:(\/\/)?/, "");

/** The endpoint in force. */
export const findSetting = (view: KubeletView): Setting =>
  find(view, keys.runtime) ?? { value: view.fallback ?? defaultEndpoint, from: "default", files: [] };

/** What the kubelet has for a setting, wherever it stands: a flag's text, or a field's value; undefined: its default. */
export function settingOf(view: KubeletView, { flag, field }: Key): unknown {
  const files = [view.config, ...(view.dropins?.files ?? [])].filter((file) => file !== undefined);
  return (
    flagValue(view.argv, flag) ??
    files.map(({ body }) => parse(body)[field]).findLast((value) => value !== undefined)
  );
}

/** The changes that point the kubelet at `endpoint`; none when it is there already. */
export function pointAt(view: KubeletView, endpoint: string): Edit[] {
  const edits = new Map<string, Edit>();
  for (const key of [keys.runtime, keys.image]) {
    const setting = find(view, key);
    if (setting === undefined ? key === keys.image : socketOf(setting.value) === socketOf(endpoint)) continue;
    for (const edit of editsOf(view, edits, key, setting, endpoint)) {
      edits.set(edit.path, { ...edit, before: edits.get(edit.path)?.before ?? edit.before });
    }
  }
  return [...edits.values()];
}

function find(view: KubeletView, key: Key): Setting | undefined {
  const flag = flagValue(view.argv, key.flag);
  if (flag !== undefined) {
    const files = view.flagFiles.filter(({ body }) => flagsIn(body, key.flag).includes(flag));
    return { value: flag, from: "flag", files: files.map(({ path }) => path) };
  }
  const dropins = view.dropins?.files.filter(({ body }) => fieldOf(body, key.field) !== undefined) ?? [];
  const last = dropins.at(-1);
  if (last !== undefined)
    return { value: fieldOf(last.body, key.field)!, from: "drop-in", files: [last.path] };
  const value = view.config && fieldOf(view.config.body, key.field);
  return value === undefined ? undefined : { value, from: "config", files: [view.config!.path] };
}

function editsOf(
  view: KubeletView,
  earlier: ReadonlyMap<string, Edit>,
  key: Key,
  setting: Setting | undefined,
  endpoint: string,
): Edit[] {
  /** A file as the edits so far leave it. */
  const text = (file: TextFile): string => earlier.get(file.path)?.after ?? file.body;
  if (setting?.from === "flag") {
    if (setting.files.length === 0) {
      throw new RuntimeError(
        "failed-precondition",
        `Cannot find where the kubelet's flag --${key.flag} is set: none of ${list(view.flagFiles)} has ${setting.value}`,
      );
    }
    return view.flagFiles
      .filter(({ path }) => setting.files.includes(path))
      .map((file) => ({
        path: file.path,
        before: file.body,
        after: replaceFlag(text(file), key.flag, setting.value, endpoint),
      }));
  }
  if (view.dropins !== undefined) {
    // A file of our own, unless one that is read after it sets the field: then that one.
    const path = `${view.dropins.directory}/${ownDropin}`;
    const file = view.dropins.files.find((other) => other.path === setting?.files[0]);
    if (file === undefined || byWalk(file.path, path) < 0) {
      const own = view.dropins.files.find((other) => other.path === path);
      const body = earlier.get(path)?.after ?? own?.body;
      return [
        {
          path,
          before: own?.body,
          after: `${body ?? "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"}${key.field}: ${endpoint}\n`,
        },
      ];
    }
    return [{ path: file.path, before: file.body, after: setField(text(file), key.field, endpoint) }];
  }
  if (view.config !== undefined) {
    return [
      {
        path: view.config.path,
        before: view.config.body,
        after: setField(text(view.config), key.field, endpoint),
      },
    ];
  }
  throw new RuntimeError(
    "failed-precondition",
    "Cannot set the kubelet's CRI endpoint: it runs without --config, --config-dir and --container-runtime-endpoint; set one of them",
  );
}

const list = (files: TextFile[]): string => files.map(({ path }) => `"${path}"`).join(", ") || "no file";

/** The last occurrence wins, as in pflag. */
function flagValue(argv: string[], flag: string): string | undefined {
  let value: string | undefined;
  argv.forEach((argument, i) => {
    const match = new RegExp(`^--?${flag}(?:=(.*))?$`).exec(argument);
    if (match) value = match[1] ?? argv[i + 1];
  });
  return value === undefined || value === "" ? undefined : value;
}

const flagPattern = (flag: string): RegExp => new RegExp(`(--?${flag}(?:=|\\s+)["']?)([^\\s"'\\\\]+)`, "g");
const isComment = (line: string): boolean => /^\s*[#;]/.test(line);

const flagsIn = (body: string, flag: string): string[] =>
  body
    .split("\n")
    .filter((line) => !isComment(line))
    .flatMap((line) => [...line.matchAll(flagPattern(flag))].map((match) => match[2] ?? ""));

const replaceFlag = (body: string, flag: string, from: string, to: string): string =>
  body
    .split("\n")
    .map((line) =>
      isComment(line)
        ? line
        : line.replace(flagPattern(flag), (all, head: string, value: string) =>
            value === from ? `${head}${to}` : all,
          ),
    )
    .join("\n");

function parse(body: string): Record<string, unknown> {
  const value = body.trim() === "" ? {} : yaml.load(body);
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new RuntimeError(
      "failed-precondition",
      "Cannot read the kubelet's configuration: it is no mapping",
    );
  }
  return value as Record<string, unknown>;
}

function fieldOf(body: string, field: string): string | undefined {
  const value = parse(body)[field];
  return typeof value === "string" && value !== "" ? value : undefined;
}

/** Sets one top-level field of a YAML or JSON file, leaving every other byte as it is. */
function setField(body: string, field: string, value: string): string {
  const json = body.trimStart().startsWith("{");
  const present = Object.hasOwn(parse(body), field);
  const after = json
    ? present
      ? body.replace(new RegExp(`("${field}"\\s*:\\s*)"[^"]*"`), (_, head: string) => `${head}"${value}"`)
      : body.replace("{", () => `{"${field}": "${value}", `)
    : present
      ? body.replace(
          new RegExp(`^(${field}[ \\t]*:)[ \\t]*("[^"\\n]*"|'[^'\\n]*'|[^\\s#]*)`, "m"),
          (_, head: string) => `${head} ${value}`,
        )
      : `${body}${body === "" || body.endsWith("\n") ? "" : "\n"}${field}: ${value}\n`;
  const expected = { ...parse(body), [field]: value };
  let result: unknown;
  try {
    result = parse(after);
  } catch {
    result = undefined;
  }
  if (canonical(result) !== canonical(expected)) {
    throw new RuntimeError(
      "failed-precondition",
      `Cannot set ${field} in the kubelet's configuration without touching the rest of it: write it on a line of its own`,
    );
  }
  return after;
}

const canonical = (value: unknown): string =>
  JSON.stringify(value, (_, inner: unknown) =>
    typeof inner === "object" && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  ) ?? "";
