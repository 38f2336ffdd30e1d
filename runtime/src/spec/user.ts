import type { LinuxContainerSecurityContext } from "@bulkhead/lib/gen/cri_pb.js";
import { SupplementalGroupsPolicy } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** Whom the container's process runs as. `groups` holds the primary group too. */
export type User = { uid: number; gid: number; groups: number[] };

export type PasswdEntry = { name: string; uid: number; gid: number };
export type GroupEntry = { name: string; gid: number; members: string[] };

/** The rootfs' user database, already read with bounds; empty where a file is absent. */
export type Accounts = { passwd: PasswdEntry[]; group: GroupEntry[] };

const maxId = 2 ** 31 - 1;

/** An id as the kernel and OCI know it: decimal, below 2^31. No fallback to a name: an overflow must not become root. */
const parseId = (text: string): number | undefined => {
  if (!/^[0-9]+$/.test(text)) return undefined;
  const id = Number(text);
  if (id > maxId)
    throw new RuntimeError("invalid-argument", `Cannot run as "${text}": not an id below 2147483648`);
  return id;
};

const field = (text: string | undefined): number | undefined => {
  if (text === undefined || !/^[0-9]{1,10}$/.test(text)) return undefined;
  const id = Number(text);
  return id <= maxId ? id : undefined;
};

/** passwd(5): lines that do not parse are left out. */
export const parsePasswd = (text: string): PasswdEntry[] =>
  text.split("\n").flatMap((line) => {
    const [name, , uidText, gidText] = line.split(":");
    const uid = field(uidText);
    const gid = field(gidText);
    return name && uid !== undefined && gid !== undefined ? [{ name, uid, gid }] : [];
  });

/** group(5): lines that do not parse are left out. */
export const parseGroup = (text: string): GroupEntry[] =>
  text.split("\n").flatMap((line) => {
    const [name, , gidText, members] = line.split(":");
    const gid = field(gidText);
    return name && gid !== undefined
      ? [{ name, gid, members: (members ?? "").split(",").filter((member) => member !== "") }]
      : [];
  });

const idOf = (value: bigint, what: string): number => {
  if (value < 0n || value > BigInt(maxId))
    throw new RuntimeError(
      "invalid-argument",
      `Cannot run with ${what} ${value}: not an id below 2147483648`,
    );
  return Number(value);
};

/** In ascending order, as the kernel keeps them (setgroups(2)); gVisor keeps what it is given. */
const inOrder = (groups: number[]): number[] => [...new Set(groups)].sort((a, b) => a - b);

type Identity = { uid: number; gid: number; name: string | undefined };

const byUid = (uid: number, accounts: Accounts): Identity => {
  const entry = accounts.passwd.find((each) => each.uid === uid);
  return { uid, gid: entry?.gid ?? 0, name: entry?.name };
};

const byName = (name: string, accounts: Accounts): Identity => {
  const uid = parseId(name);
  const entry = accounts.passwd.find((each) => each.name === name);
  if (entry) return entry;
  if (uid !== undefined) return byUid(uid, accounts);
  throw new RuntimeError(
    "invalid-argument",
    `Cannot run as user "${name}": no such user in the image's /etc/passwd`,
  );
};

const groupByName = (name: string, accounts: Accounts): number => {
  const gid = accounts.group.find((each) => each.name === name)?.gid ?? parseId(name);
  if (gid === undefined)
    throw new RuntimeError(
      "invalid-argument",
      `Cannot run as group "${name}": no such group in the image's /etc/group`,
    );
  return gid;
};

/**
 * Who runs: run_as_user, then run_as_username, then the image's USER (name, uid, either with :group), then root.
 * Groups: the primary one, supplemental_groups, and under the Merge policy those of the image's /etc/group.
 */
export const userOf = (
  security: LinuxContainerSecurityContext | undefined,
  imageUser: string,
  accounts: Accounts,
): User => {
  const named = security?.runAsUser !== undefined || (security?.runAsUsername ?? "") !== "";
  if (security?.runAsGroup !== undefined && !named)
    throw new RuntimeError(
      "invalid-argument",
      "Cannot use run_as_group without run_as_user or run_as_username",
    );
  const identity = ((): Identity => {
    if (security?.runAsUser !== undefined) return byUid(idOf(security.runAsUser.value, "uid"), accounts);
    if (security?.runAsUsername) return byName(security.runAsUsername, accounts);
    const [user = "", group] = imageUser.split(":", 2);
    const found = user === "" ? byUid(0, accounts) : byName(user, accounts);
    return group === undefined || group === "" ? found : { ...found, gid: groupByName(group, accounts) };
  })();
  const gid = security?.runAsGroup === undefined ? identity.gid : idOf(security.runAsGroup.value, "gid");
  const merged =
    security?.supplementalGroupsPolicy === SupplementalGroupsPolicy.Strict || identity.name === undefined
      ? []
      : accounts.group
          .filter((group) => group.members.includes(identity.name as string))
          .map((group) => group.gid);
  const asked = (security?.supplementalGroups ?? []).map((group) => idOf(group, "supplemental group"));
  return { uid: identity.uid, gid, groups: inOrder([gid, ...merged, ...asked]) };
};
