import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import { replaceFile } from "@bulkhead/lib/std/replace-file.ts";
import * as z from "zod";
import { throwExhausted } from "../linux/exhausted.ts";
import type { NetworkPod } from "./network.ts";

/**
 * What DEL is told of a pod; its namespace and its directory do not outlive a boot. `config` is the network that ADD was
 * begun with, `raw` its result; `addresses` are those that an ADD without a result left on the interface, as the first
 * DEL found them.
 */
const Attachment = z.object({
  pod: z.object({
    ...{ id: z.string(), name: z.string(), namespace: z.string(), uid: z.string(), cgroupParent: z.string() },
    portMappings: z.array(
      z.object({
        protocol: z.enum(["tcp", "udp", "sctp"]),
        ...{ containerPort: z.int(), hostPort: z.int(), hostIp: z.string() },
      }),
    ),
    annotations: z.record(z.string(), z.string()),
    bandwidth: z
      .object({ ingress: z.number().exactOptional(), egress: z.number().exactOptional() })
      .exactOptional(),
  }),
  config: z.unknown(),
  raw: z.unknown().optional(),
  addresses: z.array(z.string()).optional(),
});
type Attachment = z.infer<typeof Attachment>;

/**
 * Who is attached to what, on disk: records of pods end with the node's uptime, addresses that plugins gave (host-local
 * keeps them in /var/lib/cni) do not. Not synced: what the last seconds before a power cut attached may be forgotten.
 */
export const createAttachments = (dir: string) => ({
  async note(
    { netns: _, dir: __, dns: ___, ...pod }: NetworkPod,
    told: Omit<Attachment, "pod">,
  ): Promise<void> {
    const attachment: Attachment = { ...told, pod };
    await mkdir(dir, { recursive: true, mode: 0o700 });
    await replaceFile(join(dir, `${pod.id}.json`), JSON.stringify(attachment));
  },

  /** undefined when ADD never began, or nothing can be told of it. */
  async of(id: string): Promise<Attachment | undefined> {
    try {
      return Attachment.parse(JSON.parse(await readFile(join(dir, `${id}.json`), "utf8")));
    } catch (error) {
      throwExhausted(error);
      return undefined;
    }
  },

  count: async (): Promise<number> => (await readdir(dir).catch(() => [])).length,

  forget: (id: string): Promise<void> => rm(join(dir, `${id}.json`), { force: true }),

  /** Of pods that are not among `known`. What is no whole record is removed: nothing can be told of it. */
  async former(known: ReadonlySet<string>): Promise<(Attachment & { pod: NetworkPod })[]> {
    const found: (Attachment & { pod: NetworkPod })[] = [];
    for (const name of await readdir(dir).catch(() => [])) {
      if (known.has(basename(name, ".json"))) continue;
      const path = join(dir, name);
      const text = await readFile(path, "utf8");
      try {
        if (!name.endsWith(".json")) throw new Error("left over from a write");
        const attachment = Attachment.parse(JSON.parse(text));
        found.push({ ...attachment, pod: { ...attachment.pod, netns: "", dir: "" } });
      } catch {
        await rm(path, { force: true });
      }
    }
    return found;
  },
});
