import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as toml from "smol-toml";
import type { UserEdit } from "./engine.ts";

/**
 * Changes of files that somebody else owns: the least that does it, every other byte as it was, and a way back that
 * holds after they edited the file again. Pure.
 */

const refuse = (what: string): never => {
  throw new RuntimeError("failed-precondition", what);
};

/** Where the array of the top-level key `imports` stands: after its [ and before its ]. */
function importsAt(body: string): { open: number; close: number } | undefined {
  // Keys of the top level stand before the first table, so the first match is it; the result is checked anyway.
  const head = /^[ \t]*imports[ \t]*=[ \t]*\[/m.exec(body);
  if (head === null) return undefined;
  const open = head.index + head[0].length;
  for (let at = open; at < body.length; at++) {
    const char = body[at];
    if (char === "]") return { open, close: at };
    if (char === "#") at = endOf(body, at, "\n");
    if (char === '"' || char === "'") at = endOfString(body, at, char);
  }
  return undefined;
}

function endOf(body: string, from: number, char: string): number {
  const end = body.indexOf(char, from + 1);
  return end < 0 ? body.length : end;
}

function endOfString(body: string, from: number, quote: string): number {
  for (let at = from + 1; at < body.length; at++) {
    if (body[at] === "\\" && quote === '"') at++;
    else if (body[at] === quote) return at;
  }
  return body.length;
}

const lineOf = (file: string): string =>
  `imports = [${JSON.stringify(file)}] # Bulkhead's; uninstalling it takes this line away\n`;

/** Adds `file` to the imports of a TOML file as their last entry. */
export function addImport(body: string, file: string): string {
  const before = parse(body);
  if (importsOf(before).includes(file)) return body;
  const at = before.imports === undefined ? undefined : importsAt(body);
  let after: string;
  if (at === undefined) {
    after = `${lineOf(file)}${body}`;
  } else {
    const entries = body.slice(at.open, at.close);
    const significant = entries.replace(/#[^\n]*/g, "").trimEnd();
    const comma = significant.trim() === "" || significant.endsWith(",") ? "" : ", ";
    after = `${body.slice(0, at.close)}${comma}${JSON.stringify(file)}${body.slice(at.close)}`;
  }
  const wanted = { ...before, imports: [...importsOf(before), file] };
  let result: unknown;
  try {
    result = parse(after);
  } catch {
    result = undefined;
  }
  if (canonical(result) !== canonical(wanted))
    refuse(
      `Cannot add "${file}" to imports without touching the rest of the file: write imports as one array`,
    );
  return after;
}

function removeImport(body: string, file: string): string {
  const entry = JSON.stringify(file);
  const escaped = `(?:${RegExp.escape(entry)}|${RegExp.escape(`'${file}'`)})`;
  const ways = [
    // As we wrote it.
    ...[lineOf(file), `, ${entry}`, entry].map(RegExp.escape),
    // As its owner arranged it since.
    ...[`${escaped}\\s*,[ \\t]*`, `\\s*,\\s*${escaped}`, escaped],
  ];
  const found = ways.map((way) => body.replace(new RegExp(way), "")).filter((after) => after !== body);
  // What is no TOML any more has no right answer.
  return found.find((after) => isWithout(body, after, file)) ?? found[0] ?? body;
}

/** `after` says what `body` does, but for that import. */
function isWithout(body: string, after: string, file: string): boolean {
  try {
    const { imports: was, ...before } = parse(body);
    const { imports = [], ...rest } = parse(after);
    const kept = importsOf({ imports: was }).filter((other) => other !== file);
    return canonical({ imports, ...rest }) === canonical({ ...before, imports: kept });
  } catch {
    return false;
  }
}

const begin = "# --- Bulkhead begins; uninstalling it takes these lines away ---\n";
const end = "# --- Bulkhead ends ---\n";

/** Appends lines between our marks, in place of those that are there. */
export function setBlock(body: string, lines: string): string {
  const base = removeBlock(body);
  return `${base}${base === "" || base.endsWith("\n") ? "" : "\n"}${begin}${lines}${end}`;
}

function removeBlock(body: string): string {
  const from = body.indexOf(begin);
  const to = body.indexOf(end, from);
  return from < 0 || to < 0 ? body : body.slice(0, from) + body.slice(to + end.length);
}

/** Sets entries of the object `runtimes` of a JSON file, with the file's own indentation. */
export function setRuntimes(body: string, runtimes: Record<string, unknown>): string {
  const object = parseJson(body);
  const known = (object.runtimes ?? {}) as Record<string, unknown>;
  return print({ ...object, runtimes: { ...known, ...runtimes } }, body);
}

function removeRuntimes(body: string, names: string[]): string {
  const object = parseJson(body);
  const known = Object.entries((object.runtimes ?? {}) as Record<string, unknown>);
  const kept = known.filter(([name]) => !names.includes(name));
  if (kept.length === known.length) return body;
  const { runtimes: _, ...rest } = object;
  return print(kept.length === 0 ? rest : { ...object, runtimes: Object.fromEntries(kept) }, body);
}

/** The text without what `edit` put into it, whatever else happened to it meanwhile. */
export function takeBack(edit: UserEdit, today: string): string {
  switch (edit.kind) {
    case "import":
      return removeImport(today, edit.file);
    case "block":
      return removeBlock(today);
    case "runtimes":
      return removeRuntimes(today, edit.names);
  }
}

/** The imports of a parsed TOML file. */
export const importsOf = (table: Record<string, unknown>): string[] =>
  Array.isArray(table.imports) ? table.imports.filter((entry) => typeof entry === "string") : [];

/** Integers stay integers and floats floats, so that what is written again has the types that it had. */
export const parse = (body: string): Record<string, unknown> => toml.parse(body, { integersAsBigInt: true });

/** Text of a table that {@link parse} gave. */
export const stringify = (table: Record<string, unknown>): string =>
  toml.stringify(table, { numbersAsFloat: true });

/** An object of JSON; an empty file is an empty one. */
export function parseJson(body: string): Record<string, unknown> {
  const value: unknown = body.trim() === "" ? {} : JSON.parse(body);
  if (typeof value !== "object" || value === null || Array.isArray(value))
    return refuse("Cannot read the file: it is no JSON object");
  return value as Record<string, unknown>;
}

function print(object: unknown, like: string): string {
  const indent =
    /\n([ \t]+)"/.exec(like)?.[1] ?? (like.trim() === "" ? "  " : like.includes("\n") ? "  " : undefined);
  return `${JSON.stringify(object, undefined, indent)}${like === "" || like.endsWith("\n") ? "\n" : ""}`;
}

/** Equal text for equal values, in whichever order their keys stand. */
const canonical = (value: unknown): string =>
  JSON.stringify(value, (_, inner: unknown) =>
    typeof inner === "bigint"
      ? `${inner}n`
      : typeof inner === "object" && inner !== null && !Array.isArray(inner)
        ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
        : inner,
  ) ?? "";
