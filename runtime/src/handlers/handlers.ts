import { mkdir, readdir, readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { HandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { load as parseYaml } from "js-yaml";
import type { Logger } from "pino";
import * as z from "zod";
import type { Handler } from "../handler/handler.ts";
import { watchFolder } from "../linux/watch-folder.ts";

/** The kinds that run here; a delegate's pods never reach us. */
type LocalConfig = Exclude<HandlerConfig, { kind: "delegate" }>;
export type LoadedHandler = { config: LocalConfig; handler: Handler };

export type HandlersOptions = {
  /** From the configuration file; a file of the same name wins. */
  builtIn: readonly LocalConfig[];
  /** handlers.d/ */
  dir: string;
  /** Name that "" stands for. */
  defaultHandler: string;
  make: (config: LocalConfig) => Promise<Handler>;
  log: Logger;
};

/** Editors and agents write a file in several steps. */
const settleMs = 50;
/** How often the directory is looked at on a node without inotify to spare. */
const lookMs = 5_000;
/** What cannot be set up now may be later: its program is on a disk that is not there yet, the node has no descriptors. */
const retryMs = 10_000;

/**
 * The handlers that pods can be started with, loaded hot. A bad file keeps the last good version in force and is
 * reported. A pod keeps the handler that it was started with: handlers are told apart by their whole
 * configuration, and an old one lives for as long as a record names it.
 */
export class Handlers implements Disposable {
  readonly #options: HandlersOptions;
  readonly #made = new Map<string, Promise<Handler>>();
  readonly #ready = new Map<string, Handler>();
  readonly #problems = new Map<string, string>();
  /** File name → its last good version. */
  #files = new Map<string, LoadedHandler>();
  #byName = new Map<string, LoadedHandler>();
  #watcher: Disposable | undefined;
  #reloading: Promise<void> = Promise.resolve();
  #timer: NodeJS.Timeout | undefined;
  #retry: NodeJS.Timeout | undefined;

  constructor(options: HandlersOptions) {
    this.#options = options;
  }

  async start(): Promise<void> {
    await mkdir(this.#options.dir, { recursive: true });
    this.#watcher = watchFolder(
      this.#options.dir,
      () => {
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => void this.reload(), settleMs);
      },
      {
        lookMs,
        failed: (err) => this.#options.log.warn({ err }, "handlers.d cannot be watched: looked at instead"),
      },
    );
    await this.reload();
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    clearTimeout(this.#retry);
    this.#watcher?.[Symbol.dispose]();
  }

  /** Reads all files again. */
  reload(): Promise<void> {
    this.#reloading = this.#reloading.then(() => this.#read());
    return this.#reloading;
  }

  async #read(): Promise<void> {
    const { dir, log, builtIn } = this.#options;
    const problems = new Map<string, string>();
    const byName = new Map<string, LoadedHandler>();
    for (const config of builtIn)
      await this.of(config).then(
        (handler) => byName.set(config.name, { config, handler }),
        (error) => problems.set(config.name, messageOf(error)),
      );
    const files = new Map<string, LoadedHandler>();
    const names = await readdir(dir).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return [];
      // Such as no descriptors: what is loaded stays.
      problems.set(dir, messageOf(error));
      for (const [file, last] of this.#files) files.set(file, last);
      return [];
    });
    for (const file of names.filter((name) => name.endsWith(".yaml")).sort()) {
      try {
        const config = parseHandler(file, await readFile(join(dir, file), "utf8"));
        if (config.kind === "delegate") continue;
        files.set(file, { config, handler: await this.of(config) });
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === "ENOENT") continue;
        problems.set(file, messageOf(error));
        const last = this.#files.get(file);
        if (last) files.set(file, last);
      }
    }
    for (const loaded of files.values()) byName.set(loaded.config.name, loaded);
    for (const [file, problem] of problems)
      if (this.#problems.get(file) !== problem) log.error({ file, problem }, "handler not loaded");
    for (const [name, { config }] of byName)
      if (this.#byName.get(name)?.handler !== byName.get(name)?.handler)
        log.info({ handler: name, kind: config.kind, revision: config.revision ?? "" }, "handler loaded");
    for (const name of this.#byName.keys())
      if (!byName.has(name)) log.info({ handler: name }, "handler gone");
    this.#files = files;
    this.#byName = byName;
    this.#problems.clear();
    for (const [file, problem] of problems) this.#problems.set(file, problem);
    clearTimeout(this.#retry);
    if (problems.size > 0) this.#retry = setTimeout(() => void this.reload(), retryMs).unref();
  }

  /** The handler for exactly this configuration; made on first use. */
  async of(config: LocalConfig): Promise<Handler> {
    const key = JSON.stringify(config);
    let made = this.#made.get(key);
    if (made === undefined) {
      made = this.#options.make(config);
      this.#made.set(key, made);
      made.then(
        (handler) => this.#ready.set(key, handler),
        () => this.#made.delete(key),
      );
    }
    return await made;
  }

  /** The same for a pod that runs; its handler was made when it was started or recovered. */
  running(config: HandlerConfig): Handler {
    const handler = this.#ready.get(JSON.stringify(config));
    if (handler === undefined)
      throw new RuntimeError(
        "unavailable",
        `Cannot reach handler "${config.name}": it could not be set up again`,
      );
    return handler;
  }

  /** What a new pod with this runtime_handler is started with. */
  resolve(name: string): LoadedHandler {
    const found = this.#byName.get(name === "" ? this.#options.defaultHandler : name);
    if (found === undefined) {
      const problem = [...this.#problems].find(([file]) => basename(file, ".yaml") === name)?.[1];
      throw new RuntimeError(
        "unknown",
        `no runtime for "${name}" is configured${problem === undefined ? "" : `: ${problem}`}`,
      );
    }
    return found;
  }

  has(name: string): boolean {
    return this.#byName.has(name === "" ? this.#options.defaultHandler : name);
  }

  /** All names with their handlers, "" for the default one first. */
  list(): { name: string; config: LocalConfig; handler: Handler }[] {
    const all = [...this.#byName].map(([name, loaded]) => ({ name, ...loaded }));
    const main = this.#byName.get(this.#options.defaultHandler);
    return main ? [{ name: "", ...main }, ...all] : all;
  }

  /** Files that are not in force as they stand: name → what is wrong. */
  problems(): Record<string, string> {
    return Object.fromEntries(this.#problems);
  }
}

/** Parses one file of handlers.d/; messages name the key. */
export const parseHandler = (file: string, text: string): HandlerConfig => {
  const parsed = HandlerConfig.safeParse(parseYaml(text));
  if (!parsed.success)
    throw new RuntimeError(
      "invalid-argument",
      `Cannot use handler file ${file}:\n${z.prettifyError(parsed.error)}`,
    );
  if (parsed.data.name !== basename(file, ".yaml"))
    throw new RuntimeError(
      "invalid-argument",
      `Cannot use handler file ${file}: it names handler "${parsed.data.name}"; file and handler must have one name`,
    );
  return parsed.data;
};
