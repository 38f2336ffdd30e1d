import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { readBounded } from "@bulkhead/lib/std/bounded-file.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { load as parseYaml } from "js-yaml";
import * as z from "zod";
import { type CdiEdits, type CdiFile, CdiSpec, cdiEdits, type ResolvedEdits } from "../spec/cdi.ts";
import type { HostDevice } from "../spec/container-spec.ts";
import { deviceAt } from "./devices.ts";

/** Where CDI files are, the later hiding the earlier (SPEC.md, "Kubernetes and CDI"). */
export const cdiDirectories: readonly string[] = ["/etc/cdi", "/var/run/cdi"];

const maxBytes = 4 * 1024 * 1024;
const maxFiles = 256;
/** What an alias stands for is checked each time: a few of them, nested, make a small file an endless one. */
const maxAliases = 100;

/** All files of the directories. One that cannot be used is told and does not keep the others from being used. */
const readFiles = async (
  directories: readonly string[],
): Promise<{ files: CdiFile[]; unusable: string[] }> => {
  const files: CdiFile[] = [];
  const unusable: string[] = [];
  for (const [priority, dir] of directories.entries()) {
    const names = (await readdir(dir).catch(() => [])).filter((name) => /\.(json|yaml)$/.test(name)).sort();
    if (names.length > maxFiles) unusable.push(`${dir}: more than ${maxFiles} files`);
    for (const name of names.slice(0, maxFiles)) {
      const path = join(dir, name);
      try {
        // JSON is YAML.
        const parsed = CdiSpec.safeParse(parseYaml(await readBounded(path, maxBytes), { maxAliases }));
        if (parsed.success) files.push({ path, priority, spec: parsed.data });
        else unusable.push(`${path}: ${z.prettifyError(parsed.error).replaceAll("\n", " ")}`);
      } catch (error) {
        unusable.push(`${path}: ${messageOf(error)}`);
      }
    }
  }
  return { files, unusable };
};

const resolveNodes = async (nodes: NonNullable<CdiEdits["deviceNodes"]>): Promise<HostDevice[]> =>
  await Promise.all(
    nodes.map(async (node): Promise<HostDevice> => {
      const permissions = node.permissions || "rwm";
      const { type, major, minor } = node;
      const hostPath = node.hostPath ?? node.path;
      const found = await deviceAt(hostPath, node.path, permissions).catch((error) => {
        // A node that is described in full need not be there.
        if (type !== undefined && major !== undefined && minor !== undefined) return undefined;
        throw new RuntimeError(
          "failed-precondition",
          `Cannot add CDI device node "${hostPath}": ${messageOf(error)}`,
          { cause: error },
        );
      });
      if (type === "p")
        throw new RuntimeError("unimplemented", `Cannot add CDI device node "${node.path}": it is a FIFO`);
      const base = found ?? { path: node.path, mode: 0o660, uid: 0, gid: 0, permissions };
      const kind = type === undefined ? found?.type : type === "b" ? "b" : "c";
      if (
        kind === undefined ||
        (major ?? found?.major) === undefined ||
        (minor ?? found?.minor) === undefined
      )
        throw new RuntimeError(
          "failed-precondition",
          `Cannot add CDI device node "${hostPath}": not a device`,
        );
      return {
        ...base,
        type: kind,
        major: major ?? found?.major ?? 0,
        minor: minor ?? found?.minor ?? 0,
        mode: node.fileMode ?? base.mode,
        uid: node.uid ?? base.uid,
        gid: node.gid ?? base.gid,
      };
    }),
  );

/** What the named CDI devices add to a container, by the files that the node has now. */
export const resolveCdi = async (
  names: readonly string[],
  directories: readonly string[] = cdiDirectories,
): Promise<ResolvedEdits[]> => {
  if (names.length === 0) return [];
  const { files, unusable } = await readFiles(directories);
  return await Promise.all(
    cdiEdits(names, files, unusable).map(async ({ deviceNodes, ...edits }) => ({
      ...edits,
      devices: await resolveNodes(deviceNodes ?? []),
    })),
  );
};
