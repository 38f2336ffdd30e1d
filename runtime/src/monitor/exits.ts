import { mkdir, readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { watchFolder } from "../linux/watch-folder.ts";

/** How late an exit may be told on a node without inotify to spare. */
const LOOK_MS = 250;

/** How a process ended, as conmon wrote it down. */
export type ExitRecord = { code: number; finishedAt: bigint };

/** The exit file of `id`, undefined while there is none. conmon renames it into place, so it is never half written. */
export const readExit = async (directory: string, id: string): Promise<ExitRecord | undefined> => {
  const path = join(directory, id);
  try {
    const [text, { mtimeNs }] = await Promise.all([readFile(path, "utf8"), stat(path, { bigint: true })]);
    const code = Number.parseInt(text, 10);
    return { code: code >= 0 && code <= 255 ? code : 255, finishedAt: mtimeNs };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
};

/**
 * Watches the directory of exit files: one inotify watch, whatever the number of containers. Calls `exited` at most
 * once for each id that was added, also when its file was there before.
 */
export class ExitWatch {
  #directory: string;
  #exited: (id: string, exit: ExitRecord) => void;
  #failed: (error: unknown) => void;
  #waiting = new Set<string>();
  #watcher: Disposable | undefined;

  constructor(
    directory: string,
    exited: (id: string, exit: ExitRecord) => void,
    failed: (error: unknown) => void,
  ) {
    this.#directory = directory;
    this.#exited = exited;
    this.#failed = failed;
  }

  async open(): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    this.#watcher = watchFolder(
      this.#directory,
      (name) => void (name === undefined ? this.#rescan() : this.check(name)).catch(this.#failed),
      { lookMs: LOOK_MS, failed: this.#failed },
    );
  }

  /** From now on the exit of `id` is reported, if it happened already too. */
  async add(id: string): Promise<void> {
    this.#waiting.add(id);
    await this.check(id);
  }

  /** Nothing more is reported of `id`. */
  forget(id: string): void {
    this.#waiting.delete(id);
  }

  has(id: string): boolean {
    return this.#waiting.has(id);
  }

  /** Reports the exit of `id` if it is known and was not reported. */
  async check(id: string): Promise<void> {
    if (!this.#waiting.has(id)) return;
    const exit = await readExit(this.#directory, id);
    if (exit !== undefined && this.#waiting.delete(id)) this.#exited(id, exit);
  }

  close(): void {
    this.#watcher?.[Symbol.dispose]();
  }

  async #rescan(): Promise<void> {
    for (const name of await readdir(this.#directory)) await this.check(name);
  }
}
