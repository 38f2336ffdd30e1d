import { mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { inCache } from "../tools/cache.ts";
import type { ClusterDescription } from "./description.ts";
import { type ClusterPlan, planCluster, slots } from "./plan.ts";
import { readSysctls, type Sysctls, writeSysctls } from "./sysctls.ts";

const runRoot = "/run/bulkhead-dev";

/** Stands before anything else of a cluster does, and goes last: whoever finds it can clean all of it up. */
export type ClusterRecord = {
  description: ClusterDescription;
  slot: number;
  run: string;
  disk: string;
  /** Nothing but the disk survives a boot. */
  boot: string;
  /** The machine's settings before the first cluster: the last one to go puts them back. */
  sysctls: Sysctls;
};

/** The plan a record stands for. */
export const planOf = (record: ClusterRecord): ClusterPlan =>
  planCluster(record.description, record.slot, { run: record.run, disk: record.disk });

const bootId = async (): Promise<string> =>
  (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();

const recordPath = (name: string): string => join(runRoot, name, "record.json");

/** The record of a cluster, if there is one. */
export const readRecord = async (name: string): Promise<ClusterRecord | undefined> => {
  const text = await readFile(recordPath(name), "utf8").catch(() => undefined);
  return text === undefined ? undefined : (JSON.parse(text) as ClusterRecord);
};

/** The records of all clusters of this machine. */
export const listRecords = async (): Promise<ClusterRecord[]> => {
  const names = await readdir(runRoot).catch(() => []);
  const records = await Promise.all(names.map(readRecord));
  return records.filter((record) => record !== undefined);
};

/** Whether the machine was started anew since the record was written. */
export const isStale = async (record: ClusterRecord): Promise<boolean> => record.boot !== (await bootId());

/** Writes the record of a new cluster under a slot that no other one has. Call it with the machine's lock held. */
export const createRecord = async (description: ClusterDescription): Promise<ClusterRecord> => {
  const others = await listRecords();
  const taken = new Set(others.map((record) => record.slot));
  const slot = Array.from({ length: slots }, (_, i) => i).find((i) => !taken.has(i));
  if (slot === undefined)
    throw new RuntimeError("resource-exhausted", `Cannot start "${description.name}": ${slots} clusters run`);
  const record: ClusterRecord = {
    description,
    slot,
    run: join(runRoot, description.name),
    disk: inCache("clusters", description.name),
    boot: await bootId(),
    sysctls: others[0]?.sysctls ?? (await readSysctls()),
  };
  planOf(record);
  const path = recordPath(description.name);
  await mkdir(dirname(path), { recursive: true });
  await writeFile(`${path}.new`, JSON.stringify(record, undefined, 2));
  await rename(`${path}.new`, path);
  return record;
};

/** Takes a cluster's directories away, the record's own last. The last cluster puts the machine's settings back. */
export const removeRecord = async (record: ClusterRecord): Promise<void> => {
  await rm(record.disk, { recursive: true, force: true });
  if ((await listRecords()).length === 1) await writeSysctls(record.sysctls);
  await rm(record.run, { recursive: true, force: true });
};

/**
 * Holds a lock of this machine until disposed. A holder that died holds nothing: the lock names its process, with
 * the time it was started at.
 */
export const lock = async (name: string, signal: AbortSignal): Promise<AsyncDisposable> => {
  const path = join(runRoot, `.${name}.lock`);
  await mkdir(runRoot, { recursive: true });
  const me = `${process.pid} ${(await startTime(process.pid)) ?? ""}`;
  for (;;) {
    signal.throwIfAborted();
    try {
      const file = await open(path, "wx");
      await file.writeFile(me);
      await file.close();
      return { [Symbol.asyncDispose]: () => rm(path, { force: true }) };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    const [pid = "", started = ""] = (await readFile(path, "utf8").catch(() => "")).split(" ");
    const age = Date.now() - ((await stat(path).catch(() => undefined))?.mtimeMs ?? Date.now());
    // An empty lock is one being written, unless it stays empty.
    const dead = pid === "" ? age > 2000 : (await startTime(Number(pid))) !== started;
    if (dead) await rm(path, { force: true });
    else await new Promise((resolve) => setTimeout(resolve, 200));
  }
};

/** When a process started, in clock ticks since boot: with it, a pid names one process for good. */
export const startTime = async (pid: number): Promise<string | undefined> => {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  // The program's name may hold spaces and brackets; field 22 counts from behind the last one.
  const fields = text?.slice(text.lastIndexOf(")") + 2).split(" ");
  return fields?.[0] === "Z" ? undefined : fields?.[19];
};
