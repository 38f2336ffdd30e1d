import type { Node } from "../cluster/cluster.ts";

/**
 * What a node is made of, as a script that prints one line for each thing: files with their digests, units, mounts,
 * links, packet filter rules, namespaces, control groups. Left out is what the engine and the kubelet keep of their
 * own pods and what the host's daemons write all the time.
 */
const script = `
set -eu
cd /
find etc opt usr/local root var/lib var/log run \\
  \\( -path var/lib/containerd -o -path var/lib/kubelet -o -path var/lib/systemd -o -path var/log/journal \\
     -o -path var/log/pods -o -path var/log/containers -o -path run/containerd -o -path run/systemd \\
     -o -path run/udev -o -path run/log -o -path run/cni \\) -prune \\
  -o -printf '%p %y %m %U:%G %l\\n'
find etc opt usr/local root var/lib -path var/lib/containerd -prune -o -path var/lib/kubelet -prune \\
  -o -path var/lib/systemd -prune -o -type f -print0 | xargs -0 sha256sum | sed 's/^/sha256 /'
find var/log/pods run/cni run/netns -printf 'name %p\\n' 2>/dev/null || true
systemctl list-unit-files --plain --no-legend | awk '{ print "unit-file", $1, $2 }'
systemctl list-units --all --plain --no-legend --type=service,socket,timer,target,path | awk '{ print "unit", $1, $2 }'
systemctl show kubelet containerd -p ExecStart -p Environment -p EnvironmentFiles -p DropInPaths |
  sed -n -E 's/ ?; (start_time|stop_time|pid|code|status)=[^;}]*//g; /./s/^/setting /p'
awk '{ print "mount", $5, $(NF-2), $(NF-1) }' /proc/self/mountinfo
ip -o link | sed -E 's/^[0-9]+: ([^:]+):.* mtu ([0-9]+).*/interface \\1 \\2/'
ip -o route | sed 's/^/route /'
for save in iptables-save ip6tables-save; do $save | sed -E "/^#/d; s/ \\[[0-9]+:[0-9]+\\]//; s/^/$save /"; done
for kind in net pid ipc; do
  for each in /proc/[0-9]*/ns/$kind; do readlink $each 2>/dev/null || true; done | sort -u | sed 's/^/namespace /'
done
cd /sys/fs/cgroup
find . -type d -printf 'cgroup %p\\n'
`;

/** All that can be told of a node, sorted. Two of these are equal when the node is what it was. */
export const nodeListing = async (node: Node): Promise<string[]> =>
  (await node.exec(["bash", "-c", script])).split("\n").filter(Boolean).sort();

/** What the second listing has more (+) and less (-) than the first. */
export const difference = (before: readonly string[], after: readonly string[]): string[] => {
  const [had, has] = [new Set(before), new Set(after)];
  return [
    ...before.filter((line) => !has.has(line)).map((line) => `- ${line}`),
    ...after.filter((line) => !had.has(line)).map((line) => `+ ${line}`),
  ];
};
