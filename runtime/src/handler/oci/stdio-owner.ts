import { fchownSync } from "node:fs";
import { chown, readFile, stat } from "node:fs/promises";

type User = { uid: number; gid: number };

/** The id of the node that `id` is by /proc/PID/uid_map or gid_map; undefined when it is none. */
export const mappedId = (map: string, id: number): number | undefined => {
  for (const line of map.split("\n")) {
    const [from, to, size] = line.trim().split(/\s+/).map(Number);
    if (from === undefined || to === undefined || size === undefined) continue;
    if (id >= from && id < from + size) return to + id - from;
  }
  return undefined;
};

/** Whom a user of the user namespace of process `pid` is on the node; undefined when that is the node's own. */
const nodeUser = async (pid: number, user: User): Promise<User | undefined> => {
  const maps = await Promise.all(
    ["uid_map", "gid_map"].map((file) => readFile(`/proc/${pid}/${file}`, "utf8")),
  );
  const uid = mappedId(maps[0] ?? "", user.uid);
  const gid = mappedId(maps[1] ?? "", user.gid);
  return uid === undefined || gid === undefined || uid === user.uid ? undefined : { uid, gid };
};

/**
 * Gives a process its own stdio pipes, so that it can open /dev/stdout again. The runtime does so itself, except in
 * a user namespace, where the pipes' owner does not exist. The process must still be the runtime's.
 */
export const ownStdio = async (pid: number, user: User): Promise<void> => {
  const owner = await nodeUser(pid, user);
  if (owner === undefined) return;
  for (const fd of [0, 1, 2]) {
    const path = `/proc/${pid}/fd/${fd}`;
    // What is no pipe (/dev/null) is the node's.
    if ((await stat(path)).isFIFO()) await chown(path, owner.uid, owner.gid);
  }
};

/** The same for pipes that a process in the user namespace of `pid` will have. */
export const ownPipes = async (
  pipes: readonly (number | string)[],
  pid: number,
  user: User,
): Promise<void> => {
  const owner = await nodeUser(pid, user);
  if (owner === undefined) return;
  for (const pipe of pipes) if (typeof pipe === "number") fchownSync(pipe, owner.uid, owner.gid);
};
