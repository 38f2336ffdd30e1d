import { type Accounts, parseGroup, parsePasswd } from "../spec/user.ts";
import { readInRoot } from "./rootfs.ts";

/** Far above any real one; an image must not make us read without end. */
const limit = 4 * 1024 * 1024;

/** The user database of a mounted root file system. */
export const readAccounts = async (rootfs: string): Promise<Accounts> => {
  const [passwd, group] = await Promise.all([
    readInRoot(rootfs, "/etc/passwd", limit),
    readInRoot(rootfs, "/etc/group", limit),
  ]);
  return { passwd: parsePasswd(passwd), group: parseGroup(group) };
};
