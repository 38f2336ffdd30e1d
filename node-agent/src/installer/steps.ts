import { lstat, mkdir, readdir, readFile, rm, rmdir, symlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { canaryNamespace } from "@bulkhead/lib/api/group.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { type CriClient, connectCri } from "@bulkhead/lib/cri/client.ts";
import { PodSandboxState } from "@bulkhead/lib/gen/cri_pb.js";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { type Attributes, span } from "@bulkhead/lib/tracing/span.ts";
import type { Logger } from "pino";
import { z } from "zod";
import { engineExecutors } from "../engine/steps.ts";
import { type Manifest, stageBundle } from "./bundle.ts";
import { busyVersions, findKubelet, kubeletView, mountsBelow } from "./facts.ts";
import { settingsDirectory, versionDirectory } from "./files.ts";
import { type Host, must } from "./host.ts";
import { findSetting, pointAt, socketOf } from "./kubelet/setting.ts";
import type { Ownership } from "./ownership.ts";
import type { Step } from "./plan.ts";
import { sandboxes } from "./pods.ts";
import { Hopeless, poll, refuseCrashLoop, withLog } from "./wait.ts";

/** How each step is done. A step that has no executor does not compile. */
export type Executors = {
  [K in Step["do"]]: (step: Extract<Step, { do: K }>, signal: AbortSignal) => Promise<void>;
};

export type StepContext = {
  host: Host;
  ownership: Ownership;
  /** The bundle's directory in our own image. */
  bundle: string;
  manifest: Manifest;
  log: Logger;
  /** Tells people what happened. */
  note: (reason: string, message: string, type?: "Normal" | "Warning") => void;
};

/** What a program said before it began to explain all of its flags. */
const reasonOf = (output: string): string => (output.split(/^usage\b/im)[0] ?? "").trim().slice(0, 600);

/** Undo has its own deadline. */
const undoSignal = (): AbortSignal => AbortSignal.timeout(120_000);
const unitDirectories = /^\/(etc|run|usr\/lib|lib)\/systemd\//;

/** What the runtime says of its handlers in the verbose Status. */
const LoadedHandlers = z.record(z.string(), z.object({ revision: z.string().default("") }));
const HandlerProblems = z.record(z.string(), z.string());

export function executors(context: StepContext): Executors {
  const { host, ownership, bundle, manifest, note } = context;
  const systemctl = (args: string[], signal: AbortSignal): Promise<string> =>
    must(
      host.run(["systemctl", ...args], { signal, timeoutMs: 100_000 }),
      `Cannot run "systemctl ${args.join(" ")}"`,
    );
  const connect = (): CriClient => connectCri(host.at(paths.socket));
  const reload = (files: string[], signal: AbortSignal): Promise<unknown> =>
    files.some((file) => unitDirectories.test(file))
      ? systemctl(["daemon-reload"], signal)
      : Promise.resolve();

  return {
    ...engineExecutors(context),
    stage: async ({ version, files }, signal) => {
      await ownership.tree(versionDirectory(version));
      await stageBundle(manifest, bundle, host.at(versionDirectory(version)), new Set(files), signal);
      note("Staged", `Put ${files.length} files of version ${version} in place, digests verified`);
    },
    link: async ({ path, target }) => ownership.symlink(path, target),
    // What settings name may be a credential.
    write: async ({ path, body }) =>
      ownership.write(path, body, path.startsWith(`${settingsDirectory}/`) ? { mode: 0o600 } : {}),
    tree: async ({ path }) => ownership.tree(path),
    alias: async ({ path, target }) => {
      const at = host.at(path);
      const tree = dirname(dirname(path));
      const there = await lstat(host.at(tree)).catch(() => undefined);
      if (there === undefined) await ownership.tree(tree);
      await mkdir(dirname(at), { recursive: true });
      await rm(at, { force: true });
      await symlink(target, at);
    },
    restore: async ({ path }) => ownership.restore(path),
    "daemon-reload": async (_, signal) => {
      await systemctl(["daemon-reload"], signal);
    },
    "start-runtime": async ({ restart }, signal) => {
      // What the runtime makes is ours to remove; so that a crash after this loses track of nothing.
      await ownership.tree(paths.root);
      await ownership.tree(paths.state);
      await ownership.tree(paths.handlers);
      await systemctl(["reset-failed", paths.unit], signal).catch(() => undefined);
      await systemctl([restart ? "restart" : "start", paths.unit], signal);
      note(
        "RuntimeStarted",
        `${restart ? "Restarted" : "Started"} ${paths.unit} in version ${manifest.version}`,
      );
    },
    "await-runtime": async (_, signal) => {
      using cri = connect();
      const { runtime } = cri;
      try {
        let looked = performance.now();
        await poll("The runtime did not become ready", 30_000, signal, async (each) => {
          if (performance.now() - looked > 1000) {
            looked = performance.now();
            await refuseCrashLoop(host, paths.unit, 2, each);
          }
          const { status } = await runtime.status({ verbose: false }, each);
          const ready = status?.conditions.find(({ type }) => type === "RuntimeReady");
          if (ready?.status === true) return true;
          throw new RuntimeError("unavailable", ready?.message || "RuntimeReady is false");
        });
      } catch (error) {
        signal.throwIfAborted();
        throw await withLog(host, paths.unit, error);
      }
    },
    "check-program": async ({ argv }, signal) => {
      const { code, stdout, stderr } = await host.run(argv, { signal, timeoutMs: 10_000 });
      if (code === 0) return;
      const said = reasonOf(stderr) || reasonOf(stdout);
      throw new RuntimeError(
        "failed-precondition",
        `Cannot run "${argv.join(" ")}" on this node: exit code ${code}${said === "" ? "" : `: ${said}`}`,
      );
    },
    "await-handler": async ({ handler, revision, present }, signal) => {
      using cri = connect();
      const { runtime } = cri;
      const what = `The runtime did not ${present ? "load" : "drop"} handler "${handler}"`;
      const begun = performance.now();
      await poll(what, 15_000, signal, async (each) => {
        const { info } = await runtime.status({ verbose: true }, each);
        const loaded = LoadedHandlers.parse(JSON.parse(info.handlers ?? "{}"));
        const found = loaded[handler];
        if (present ? found?.revision === revision : found === undefined) return true;
        const problems = HandlerProblems.parse(JSON.parse(info.handlerProblems ?? "{}"));
        const problem = problems[`${handler}.yaml`];
        // A moment's grace: what it says may still be about the file that was there before.
        if (present && problem !== undefined) {
          throw performance.now() - begun > 1000
            ? new Hopeless(problem)
            : new RuntimeError("unavailable", problem);
        }
        return undefined;
      });
    },
    "point-kubelet": async ({ unit, former, edits }, signal) => {
      const files = edits.map(({ path }) => path);
      await using undo = new AsyncDisposableStack();
      undo.defer(async () => {
        const mine = undoSignal();
        for (const path of files) await ownership.restore(path);
        await ownership.update(() => ({ kubelet: undefined }));
        await reload(files, mine);
        // systemd refuses to start what failed too often, until it is told to forget that.
        await systemctl(["reset-failed", unit], mine).catch(() => undefined);
        await systemctl(["restart", unit], mine);
        await kubeletServed(host, unit, socketOf(former), mine);
        note("RolledBack", `The kubelet is served by ${former} again`, "Warning");
      });
      await ownership.update(({ kubelet }) => ({
        kubelet: { unit, former, files: [...new Set([...(kubelet?.files ?? []), ...files])] },
      }));
      for (const { path, after } of edits) await ownership.write(path, after);
      await reload(files, signal);
      try {
        await systemctl(["restart", unit], signal);
        await kubeletServed(host, unit, paths.socket, signal, 3);
      } catch (error) {
        signal.throwIfAborted();
        throw await withLog(host, unit, error);
      }
      undo.move();
      note(
        "KubeletPointed",
        `The kubelet is served by ${paths.socket}, in front of ${former} (${files.join(", ")})`,
      );
    },
    "return-kubelet": async ({ unit, former, files }, signal) => {
      for (const path of files) {
        await ownership.restore(path, (today) => {
          // Somebody edited the file meanwhile: only our own setting goes.
          const view = { argv: [], flagFiles: [], config: { path, body: today } };
          const inConfig = /ontainerRuntimeEndpoint/.test(today)
            ? pointAt(view, former)[0]?.after
            : undefined;
          return inConfig ?? today.replaceAll(`unix://${paths.socket}`, former);
        });
      }
      await reload(files, signal);
      await systemctl(["restart", unit], signal);
      await kubeletServed(host, unit, socketOf(former), signal);
      await ownership.update(() => ({ kubelet: undefined }));
      note("KubeletReturned", `The kubelet is served by ${former} again`);
    },
    "remove-dead-pods": async ({ handlers, socket }, cancelled) => {
      const signal = AbortSignal.any([cancelled, AbortSignal.timeout(120_000)]);
      using cri = socket === undefined ? connect() : connectCri(host.at(host.real(socket)));
      const { runtime } = cri;
      const engine = socket === undefined ? undefined : ownership.record.engine?.kind;
      const items = await sandboxes(cri, engine, signal).catch((error: unknown) => {
        // A runtime that does not answer has nothing that could be asked to go; purge takes its files and mounts.
        context.log.warn({ err: messageOf(error) }, "cannot list pods before leaving");
        return [];
      });
      for (const { id, state, runtimeHandler, metadata } of items) {
        const dead = state === PodSandboxState.SANDBOX_NOTREADY && handlers.includes(runtimeHandler);
        if (!dead && metadata?.namespace !== canaryNamespace) continue;
        try {
          await runtime.stopPodSandbox({ podSandboxId: id }, signal);
          await runtime.removePodSandbox({ podSandboxId: id }, signal);
        } catch (error) {
          if (!hasCode(error, "not-found")) throw error;
        }
      }
    },
    "stop-runtime": async (_, signal) => {
      const loaded = await host.run(["systemctl", "show", paths.unit, "-p", "LoadState"], { signal });
      if (loaded.stdout.includes("not-found")) return;
      await systemctl(["stop", paths.unit], signal);
    },
    purge: async ({ keep }, signal) => {
      const trees = ownership.record.entries.filter(
        (entry) => entry.kind === "tree" && !keep.includes(entry.path),
      );
      for (const point of await mountsBelow(trees.map(({ path }) => path))) {
        // A disk of the admin's own below our directory stays where it is.
        if (trees.some((entry) => entry.kind === "tree" && entry.existed && entry.path === point)) continue;
        await must(host.run(["umount", "-l", point], { signal }), `Cannot unmount "${point}"`);
      }
      // What the runtime keeps: recorded as ours before it was first started.
      await ownership.restoreAll(keep);
      await removeCgroups(host);
      await systemctl(["daemon-reload"], signal);
      await systemctl(["reset-failed", paths.unit], signal).catch(() => undefined);
    },
    collect: async ({ version }) => {
      // Asked again at the last moment: a pod may have started from it since the plan was made.
      if ((await busyVersions()).has(version)) return;
      await ownership.restore(versionDirectory(version));
      await rm(host.at(versionDirectory(version)), { recursive: true, force: true });
    },
  };
}

/** Runs steps in order. */
export async function execute(
  steps: Step[],
  run: Executors,
  signal: AbortSignal,
  log: Logger,
): Promise<void> {
  for (const step of steps) {
    signal.throwIfAborted();
    const startedAt = performance.now();
    const { do: what, ...rest } = step;
    const brief = Object.fromEntries(
      Object.entries(rest).filter(([, value]) => typeof value === "string" && value.length < 200),
    );
    // That the runtime serves is looked at in every pass.
    const routine = what === "await-runtime" && steps.length === 1;
    const work = (): Promise<void> =>
      (run[what] as (step: Step, signal: AbortSignal) => Promise<void>)(step, signal);
    try {
      await (routine ? work() : span(what, attributesOf(step), work));
      log[routine ? "debug" : "info"](
        { step: what, ...brief, ms: Math.round(performance.now() - startedAt) },
        "step done",
      );
    } catch (error) {
      log.warn({ step: what, ...brief, err: messageOf(error) }, "step failed");
      throw error;
    }
  }
}

/** What of a step its span says: names, nothing of what is in files or on command lines. */
const attributesOf = (step: Step): Attributes => {
  const fields = step as Partial<Record<"path" | "unit" | "version" | "handler" | "revision", unknown>>;
  const text = (value: unknown): string | undefined => (typeof value === "string" ? value : undefined);
  return {
    "file.path": text(fields.path),
    "bulkhead.unit": text(fields.unit),
    "bulkhead.version": text(fields.version),
    "bulkhead.handler": text(fields.handler),
    "bulkhead.profile.revision": text(fields.revision),
  };
};

/** Removes the empty control groups that the runtime made for its monitors and for pods without a parent. */
async function removeCgroups(host: Host): Promise<void> {
  const top = host.at("/sys/fs/cgroup");
  const hierarchies = [top, ...(await readdir(top)).map((name) => join(top, name))];
  const remove = async (directory: string): Promise<void> => {
    const below = await readdir(directory, { withFileTypes: true }).catch(() => []);
    for (const entry of below) if (entry.isDirectory()) await remove(join(directory, entry.name));
    // One that still has a process stays; so does its parent.
    await rmdir(directory).catch(() => undefined);
  };
  // The second is where containerd puts the canary, which names no parent; with pods of others in it it stays.
  for (const name of ["bulkhead", "k8s.io"])
    for (const hierarchy of hierarchies) await remove(join(hierarchy, name));
}

/** Connections that a server has accepted on a Unix socket, in the network namespace of `pid`. */
async function accepted(pid: number, socket: string): Promise<number> {
  const table = await readFile(`/proc/${pid}/net/unix`, "utf8").catch(() => "");
  return table.split("\n").filter((line) => {
    const fields = line.trim().split(/\s+/);
    return fields[5] === "03" && fields[7] === socket;
  }).length;
}

/**
 * Waits until the restarted kubelet is healthy and served by `socket`: it runs for some seconds (a kubelet that
 * cannot reach its runtime exits), names that socket in its settings, holds a connection to it, and says ok on
 * its healthz port. `restarts`: after how many of them it is given up before its time.
 */
async function kubeletServed(
  host: Host,
  unit: string,
  socket: string,
  signal: AbortSignal,
  restarts = Number.POSITIVE_INFINITY,
): Promise<void> {
  let since: { pid: number; at: number } | undefined;
  await poll(
    `The kubelet (${unit}) is not healthy on ${socket}`,
    90_000,
    signal,
    async (each) => {
      if (restarts < Number.POSITIVE_INFINITY) await refuseCrashLoop(host, unit, restarts, each);
      const kubelet = await findKubelet();
      if (kubelet === undefined) throw new RuntimeError("unavailable", "it does not run");
      if (since?.pid !== kubelet.pid) since = { pid: kubelet.pid, at: performance.now() };
      const view = await kubeletView(host, kubelet, each);
      const setting = findSetting(view);
      if (socketOf(setting.value) !== socket) {
        throw new RuntimeError("failed-precondition", `its endpoint is ${setting.value} (${setting.from})`);
      }
      if ((await accepted(kubelet.pid, socket)) === 0) {
        throw new RuntimeError("unavailable", "it has no connection to that socket");
      }
      const health = await healthOf(host, view.config?.body ?? "", each);
      if (health !== "ok") throw new RuntimeError("unavailable", `its healthz says ${health}`);
      return performance.now() - since.at > 3000 ? true : undefined;
    },
    500,
  );
}

async function healthOf(host: Host, config: string, signal: AbortSignal): Promise<string> {
  const port = /^\s*"?healthzPort"?:\s*([0-9]+)/m.exec(config)?.[1] ?? "10248";
  const bind = /^\s*"?healthzBindAddress"?:\s*"?([0-9a-f.:]+)/m.exec(config)?.[1] ?? "127.0.0.1";
  // Switched off by the admin: the process and its connection must do.
  if (port === "0") return "ok";
  const address = bind === "0.0.0.0" ? "127.0.0.1" : bind === "::" ? "[::1]" : bind;
  const answer = await host.fetch(`http://${address}:${port}/healthz`, { signal, timeoutMs: 4000 });
  return answer.code === 0 ? answer.stdout.trim() : answer.stderr.trim() || "nothing";
}
