import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { parseJson, setRuntimes, takeBack } from "./edits.ts";
import {
  type Adapter,
  type Change,
  flagOf,
  numbersOf,
  refuseKind,
  refuseTaken,
  type UserEdit,
} from "./engine.ts";

/**
 * Docker Engine behind cri-dockerd: entries of `runtimes` in daemon.json, beside what is there. SIGHUP makes dockerd
 * read them; no process is restarted.
 */

const mainFile = (argv: string[]): string => flagOf(argv, "--config-file") ?? "/etc/docker/daemon.json";

export const docker: Adapter = {
  reads: (argv) => [mainFile(argv)],
  more: () => [],
  plan: (engine, handlers, record): Change => {
    const path = mainFile(engine.argv);
    const body = engine.files.get(path);
    const ours = record?.edited.find((edited) => edited.path === path)?.edit;
    const base = body === undefined || ours === undefined ? body : takeBack(ours, body);
    let object: Record<string, unknown>;
    try {
      object = parseJson(base ?? "");
    } catch (error) {
      const why = error instanceof Error ? error.message : "";
      throw new RuntimeError("failed-precondition", `Cannot read Docker's "${path}": ${why}`, {
        cause: error,
      });
    }
    if (handlers.length > 0 && flagOf(engine.argv, "--add-runtime") !== undefined) {
      throw new RuntimeError(
        "failed-precondition",
        `Cannot add handlers to "${path}": dockerd is started with --add-runtime, and refuses both; move that runtime to the file`,
      );
    }
    const known = (object.runtimes ?? {}) as Record<string, unknown>;
    for (const { name } of handlers) if (known[name] !== undefined) refuseTaken(name, path);
    for (const handler of handlers)
      if (handler.kind === "vm" || handler.kind === "shim")
        refuseKind(
          "Docker",
          handler,
          "cri-dockerd makes a sandbox of each container, and a pod is to have one",
        );
      else if (handler.kind === "gvisor" && handler.args.includes("--network=sandbox"))
        refuseKind(
          "Docker",
          handler,
          "cri-dockerd reads a pod's address from an interface that gVisor's own network takes it from, and the kubelet ends such a pod; with handler.gvisor.network: host it runs",
        );
    const runtimes = Object.fromEntries(
      handlers.map(({ name, program, args }) => [
        name,
        { path: program, ...(args.length === 0 ? {} : { runtimeArgs: args }) },
      ]),
    );
    const edit: UserEdit = { kind: "runtimes", names: handlers.map(({ name }) => name) };
    // What dockerd can judge without starting, since 23.0.
    const judges = numbersOf(engine.version)[0] >= 23;
    return {
      own: {},
      edits: handlers.length === 0 ? [] : [{ path, edit, base, after: setRuntimes(base ?? "", runtimes) }],
      reload: { by: "hup", pid: engine.pid, unit: engine.unit },
      keeps: [],
      ...(judges ? { check: [engine.program, "--validate", `--config-file=${path}`] } : {}),
    };
  },
  // It says that the file is valid, not what is in it.
  shown: () => [],
};
