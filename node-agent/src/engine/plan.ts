import type { Step } from "../installer/plan.ts";
import type { Change, Engine, EngineHandler, EngineRecord, Reload } from "./engine.ts";

/**
 * From what an engine's files are and what they shall be to the steps between, and back. Pure.
 *
 *   record → files → the engine's own check of them → reload → the engine offers the handlers
 */

export type EnginePlan = {
  /** The files, and the engine's own word on them; the engine has noticed nothing yet. */
  files: Step[];
  /** The engine reads them. */
  load: Step[];
  /** What undoes `files`. */
  back: Step[];
  /** What undoes `load` after that. Only then: an engine is not restarted for what it never read. */
  reload: Step[];
};

/** What is recorded of a change once it is made; undefined when nothing of ours is left. */
function recordOf(engine: Engine, change: Change, handlers: string[]): EngineRecord | undefined {
  const own = Object.keys(change.own);
  const edited = change.edits.map(({ path, edit }) => ({ path, edit }));
  return own.length + edited.length === 0 ? undefined : { kind: engine.kind, own, edited, handlers };
}

/**
 * The steps of a change. `unread`: the engine has not read what its files say since they were written, so that it
 * has to be told although no byte changes. No steps: nothing is to be done, and nothing is restarted.
 */
export function planChange(
  engine: Engine,
  change: Change,
  record: EngineRecord | undefined,
  handlers: Pick<EngineHandler, "name">[],
  unread: boolean,
): EnginePlan {
  const { files } = engine;
  const steps: Step[] = [];
  const back: Step[] = [];
  for (const [path, body] of Object.entries(change.own)) {
    const today = files.get(path);
    if (today === body) continue;
    steps.push({ do: "write", path, body });
    back.push(today === undefined ? { do: "restore", path } : { do: "write", path, body: today });
  }
  for (const path of record?.own ?? []) {
    if (path in change.own) continue;
    const today = files.get(path);
    if (today === undefined) continue;
    steps.push({ do: "restore", path });
    back.push({ do: "write", path, body: today });
  }
  for (const { path, edit, base, after } of change.edits) {
    const today = files.get(path);
    const ours = record?.edited.find((edited) => edited.path === path);
    // A copy that another made of a file with our edit in it is ours only once it is recorded.
    if (today === after && ours !== undefined) continue;
    steps.push({ do: "edit", path, body: after, base });
    back.push(
      today === undefined || (today !== after && ours === undefined)
        ? { do: "take-back", path, edit }
        : { do: "edit", path, body: today, base },
    );
  }
  for (const { path, edit } of record?.edited ?? []) {
    if (change.edits.some((other) => other.path === path)) continue;
    const today = files.get(path);
    if (today === undefined) continue;
    steps.push({ do: "take-back", path, edit });
    back.push({ do: "edit", path, body: today, base: undefined });
  }
  if (steps.length === 0 && !unread) return { files: [], load: [], back: [], reload: [] };

  const told = handlers.map(({ name }) => name);
  const after = recordOf(engine, change, told);
  const names = [...told, ...change.keeps];
  const { kind, socket } = engine;
  const { reload, check } = change;
  const asked = reload.by === "hup" ? reload.asked : undefined;
  const again: Reload =
    reload.by !== "hup" || asked === undefined
      ? reload
      : asked.stays === undefined
        ? { by: "restart", unit: reload.unit }
        : { by: "hup", pid: reload.pid, unit: reload.unit };
  const both: EngineRecord = {
    kind,
    own: [...new Set([...(record?.own ?? []), ...(after?.own ?? [])])],
    edited: [
      ...(after?.edited ?? []),
      ...(record?.edited.filter(({ path }) => !after?.edited.some((other) => other.path === path)) ?? []),
    ],
    handlers: [...new Set([...(record?.handlers ?? []), ...told])],
    pending: true,
  };
  const tell = (how: Reload, present: string[]): Step[] => [
    { do: "reload-engine", reload: how },
    {
      do: "await-engine",
      socket,
      unit: how.unit,
      handlers: present,
      restarted: how.by === "restart" || asked !== undefined,
    },
  ];
  return {
    files: [
      { do: "record-engine", record: both },
      ...steps,
      ...(check === undefined || steps.length === 0
        ? []
        : [{ do: "check-engine", kind, argv: check, handlers: names } as const]),
    ],
    load: [...tell(reload, names), { do: "record-engine", record: after }],
    back: [...back, { do: "record-engine", record }],
    // Whether it took the change up or not: restarted it has what it had.
    reload: tell(again, change.keeps),
  };
}
