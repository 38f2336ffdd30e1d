import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { parse, stringify } from "./edits.ts";
import { type Adapter, type Change, flagOf, header, refuseTaken } from "./engine.ts";

/**
 * CRI-O: a file of ours in its directory of drop-ins. SIGHUP makes it read the table of runtimes again; no process
 * is restarted.
 */

type Table = Record<string, unknown>;
const tableOf = (value: unknown): Table =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Table) : {};

const mainFile = (argv: string[]): string => flagOf(argv, "--config", "-c") ?? "/etc/crio/crio.conf";
const directory = (argv: string[]): string => flagOf(argv, "--config-dir", "-d") ?? "/etc/crio/crio.conf.d";

/** containers-registries.conf(5): the canary's image comes from a registry on the loopback interface, without TLS. */
const registries = "/etc/containers/registries.conf.d/99-bulkhead.conf";

const runtimesOf = (table: Table): Table => tableOf(tableOf(tableOf(table.crio).runtime).runtimes);

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
    const runtimes = Object.fromEntries(
      handlers.map(({ name, kind, program, shim, config }) => [
        name,
        kind === "gvisor"
          ? { runtime_path: shim, runtime_type: "vm", runtime_config_path: config }
          : { runtime_path: program, runtime_type: "oci", runtime_root: `/run/${kind}` },
      ]),
    );
    return {
      own:
        handlers.length === 0
          ? {}
          : {
              [own]: header + stringify({ crio: { runtime: { runtimes } } }),
              [registries]: `${header}[[registry]]\nlocation = "127.0.0.1"\ninsecure = true\n`,
            },
      edits: [],
      reload: { by: "hup", pid: engine.pid, unit: engine.unit },
      keeps: [],
      check: [
        ...[engine.program, "--config", mainFile(engine.argv), "--config-dir", directory(engine.argv)],
        "config",
      ],
    };
  },
  shown: (output) => Object.keys(runtimesOf(parse(output))),
};
