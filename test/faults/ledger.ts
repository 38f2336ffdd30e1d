import type { Program } from "./plan.ts";

/** What we asked of a container and what we were told: from it follows what may be true of it now. */
export type Entry = {
  actor: number;
  attempt: number;
  program: Program;
  podId: string;
  /** Told by CreateContainer; without an answer there may be one all the same. */
  id?: string;
  start: "not asked" | "asked" | "done" | "failed";
  /** A stop or removal was asked: it may end by a signal. */
  ending: boolean;
  remove: "not asked" | "asked" | "done";
};

/** Ids (of containers and pods) whose processes somebody killed. */
export type Hits = {
  monitors: Set<string>;
  processes: Set<string>;
  /** Nobody could write to the state directory for a while: the monitor of what ended then could not say how. */
  unwritable: boolean;
};

/** A container as the daemon lists it. */
export type Listed = {
  id: string;
  actor: number;
  attempt: number;
  podId: string;
  state: "created" | "running" | "exited" | "unknown";
  exitCode: number;
  reason: string;
  /** Its lines in the log, once it has exited. */
  lines?: string[];
  /** True when a process of it is there. */
  alive: boolean;
};

/** What a program says before it does anything else. */
export const firstLines = 5;

const signalled = [137, 143];

/** Exit codes that can be true of a container, with the reason why others cannot. */
export const possibleCodes = (entry: Entry, id: string, hits: Hits): number[] => {
  const codes: number[] = [];
  const { program } = entry;
  if (program.kind === "ends") codes.push(program.code);
  if (program.kind === "asked" && entry.ending) codes.push(program.code);
  if (entry.ending) codes.push(...signalled);
  if (hits.processes.has(id) || hits.processes.has(entry.podId)) codes.push(137, 143, 255);
  if (hits.monitors.has(id)) codes.push(255, 137);
  if (hits.unwritable) codes.push(255);
  // One that was never let go ends by the signal that removes it.
  if (entry.start !== "done") codes.push(128, ...signalled);
  return codes;
};

/** Everything in which the daemon's list contradicts what we asked and were told. */
export const audit = (entries: readonly Entry[], listed: readonly Listed[], hits: Hits): string[] => {
  const problems: string[] = [];
  const known = new Set<string>();
  for (const each of listed) {
    const name = `container ${each.actor}/${each.attempt} (${each.id.slice(0, 13)})`;
    const candidates = entries.filter(
      (entry) =>
        entry.id === each.id ||
        (entry.id === undefined &&
          entry.actor === each.actor &&
          entry.attempt === each.attempt &&
          entry.podId === each.podId),
    );
    const entry = candidates.find(({ id }) => id === each.id) ?? candidates[0];
    if (entry === undefined) {
      problems.push(`${name} is listed, and nobody asked for it`);
      continue;
    }
    known.add(each.id);
    const said = `${each.state} ${each.state === "exited" ? `${each.exitCode} ${each.reason}` : ""}`.trim();
    if (entry.remove === "done") problems.push(`${name} is ${said} although it was removed`);
    if (entry.start === "done" && each.state === "created")
      problems.push(`${name} is created although it was started`);
    if (each.state === "running" && !each.alive) problems.push(`${name} is running without a process`);
    if (each.state === "exited" && each.alive) problems.push(`${name} is ${said}, and its process runs`);
    if (each.state === "running" && entry.start === "not asked")
      problems.push(`${name} is running, and nobody started it`);
    if (each.state !== "exited") continue;
    const codes = possibleCodes(entry, each.id, hits);
    if (!codes.includes(each.exitCode))
      problems.push(`${name} is ${said}; possible is ${codes.join(", ") || "nothing but running"}`);
    if (entry.start === "done" && each.reason === "StartError")
      problems.push(`${name} is ${said} although it was started`);
    const own = entry.start === "done" && each.exitCode === entry.program.code && each.exitCode < 126;
    if (own && entry.program.kind === "ends" && each.lines !== undefined && !hits.monitors.has(each.id)) {
      const wanted = Array.from({ length: firstLines }, (_, index) => `line ${index + 1}`);
      if (each.lines.join() !== wanted.join())
        problems.push(`${name} has the log "${each.lines.join(", ")}" instead of ${firstLines} lines`);
    }
  }
  for (const entry of entries)
    if (entry.id !== undefined && entry.remove === "not asked" && !known.has(entry.id))
      problems.push(
        `container ${entry.actor}/${entry.attempt} (${entry.id.slice(0, 13)}) is lost: created, never removed, and not listed`,
      );
  return problems;
};
