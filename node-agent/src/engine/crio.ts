import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { parse, stringify } from "./edits.ts";
import {
  type Adapter,
  type Change,
  type EngineHandler,
  flagOf,
  header,
  refuseKind,
  refuseTaken,
} from "./engine.ts";

/**
 * CRI-O: a file of ours in its directory of drop-ins. It reads the table of runtimes again at SIGHUP and shows it, but
 * starts pods by the table that it was started with, in all versions up to 1.37 (cri-o issue 10202): so it is asked, and
 * restarted where it did not take the table up. Its containers are their monitors' and run on.
 */

type Table = Record<string, unknown>;
const tableOf = (value: unknown): Table =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Table) : {};

const mainFile = (argv: string[]): string => flagOf(argv, "--config", "-c") ?? "/etc/crio/crio.conf";
const directory = (argv: string[]): string => flagOf(argv, "--config-dir", "-d") ?? "/etc/crio/crio.conf.d";

/** containers-registries.conf(5): the canary's image comes from a registry on the loopback interface, without TLS. */
const registries = "/etc/containers/registries.conf.d/99-bulkhead.conf";

const runtimesOf = (table: Table): Table => tableOf(tableOf(tableOf(table.crio).runtime).runtimes);

function runtimeOf(handler: EngineHandler): Table {
  const { kind, program, shim, config, alias } = handler;
  switch (kind) {
    case "runc":
    case "crun":
      if (handler.args.length > 0)
        refuseKind("CRI-O", handler, `it starts ${kind} without flags, and handler.${kind}.flags are given`);
      return { runtime_path: program, runtime_type: "oci", runtime_root: `/run/${kind}` };
    case "vm":
      return refuseKind(
        "CRI-O",
        handler,
        "it passes every annotation of a pod on, and by io.katacontainers.config.runtime a tenant would take the wall down",
      );
    case "gvisor":
    case "shim":
      if (handler.sandboxApi === true)
        refuseKind("CRI-O", handler, "it has no sandbox API, and handler.shim.sandboxApi is set");
      return {
        runtime_path: alias ?? shim ?? program,
        runtime_type: "vm",
        // For its pipes; without one they would be in CRI-O's working directory.
        runtime_root: "/run/crio",
        ...(config === undefined ? {} : { runtime_config_path: config }),
      };
  }
}

/** The entries of our own file as it is today. */
function entriesOf(body: string | undefined): Table {
  try {
    return runtimesOf(parse(body ?? ""));
  } catch {
    return {};
  }
}

const same = (a: unknown, b: unknown): boolean => JSON.stringify(a) === JSON.stringify(b);

export const crio: Adapter = {
  reads: (argv) => [mainFile(argv), `${directory(argv)}/*`],
  more: () => [],
  plan: (engine, handlers, record): Change => {
    const own = join(directory(engine.argv), "99-bulkhead.conf");
    const written = new Set(record?.own);
    for (const [path, body] of engine.files) {
      if (path === own || written.has(path)) continue;
      let table: Table;
      try {
        table = parse(body);
      } catch (error) {
        const why = error instanceof Error ? error.message.split("\n")[0] : "";
        throw new RuntimeError("failed-precondition", `Cannot read CRI-O's "${path}": ${why}`, {
          cause: error,
        });
      }
      for (const { name } of handlers) if (runtimesOf(table)[name] !== undefined) refuseTaken(name, path);
    }
    const runtimes = Object.fromEntries(handlers.map((handler) => [handler.name, runtimeOf(handler)]));
    const today = entriesOf(engine.files.get(own));
    const comes = Object.keys(runtimes).filter((name) => !same(today[name], runtimes[name]));
    const goes = Object.keys(today).filter((name) => runtimes[name] === undefined);
    const { pid, unit, socket } = engine;
    return {
      own:
        handlers.length === 0
          ? {}
          : {
              [own]: header + stringify({ crio: { runtime: { runtimes } } }),
              [registries]: `${header}[[registry]]\nlocation = "127.0.0.1"\ninsecure = true\n`,
            },
      edits: [],
      reload:
        record?.pending === true && handlers.length > 0
          ? { by: "restart", unit }
          : { by: "hup", pid, unit, asked: { socket, comes, goes } },
      keeps: [],
      check: [
        ...[engine.program, "--config", mainFile(engine.argv), "--config-dir", directory(engine.argv)],
        "config",
      ],
    };
  },
  shown: (output) => Object.keys(runtimesOf(parse(output))),
};
