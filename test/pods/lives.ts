import type { Node } from "../cluster/cluster.ts";
import type { Namespace, Pod } from "./kube.ts";

/** Each container by pod: its id, how often it was restarted, its first process and when that began. */
export type Lives = Record<string, { id: string; restarts: number; process: string }>;

/** The lives of a namespace's containers on these nodes; equal when no container there was touched in between. */
export const livesOf = async (ns: Namespace, nodes: readonly Node[], prefix = ""): Promise<Lives> => {
  const { items } = JSON.parse(await ns.kubectl(["get", "pods", "-o", "json"])) as { items: Pod[] };
  const processes = new Map(
    await Promise.all(nodes.map(async (node) => [node.name, await processesOf(node)] as const)),
  );
  return Object.fromEntries(
    items
      .filter(({ metadata }) => metadata.name.startsWith(prefix))
      .flatMap(({ metadata, spec, status }) =>
        (status.containerStatuses ?? []).map(({ name, containerID, restartCount }) => {
          const id = containerID.replace(/^.*:\/\//, "");
          const there = processes.get(spec.nodeName) ?? [];
          // Behind gVisor a container has no process on the node: its sandbox has.
          const process =
            there.find(({ cgroups }) => cgroups.includes(id)) ??
            there.find(({ cgroups }) => cgroups.includes(`pod${metadata.uid}`));
          const life = { id, restarts: restartCount, process: process?.identity ?? "" };
          return [`${metadata.name}/${name}`, life] as const;
        }),
      ),
  );
};

/** The node's processes, oldest first. Nobody but the kernel can vouch for one: its pid and when it began. */
const processesOf = async (node: Node): Promise<{ identity: string; cgroups: string }[]> => {
  const script =
    "for p in /proc/[0-9]*; do s=$(cat $p/stat) && c=$(tr '\\n' ' ' <$p/cgroup) && echo \"$s|$c\"; done 2>/dev/null; true";
  return (await node.exec(["sh", "-c", script]))
    .split("\n")
    .flatMap((line) => {
      const [, pid, fields, cgroups] = /^([0-9]+) \(.*\) ([^|]*)\|(.*)$/.exec(line) ?? [];
      if (pid === undefined || fields === undefined || cgroups === undefined) return [];
      return [{ pid: Number(pid), began: Number(fields.split(" ")[19]), cgroups }];
    })
    .sort((a, b) => a.began - b.began || a.pid - b.pid)
    .map(({ pid, began, cgroups }) => ({ identity: `${pid} since ${began}`, cgroups }));
};
