import type { Node } from "../cluster/cluster.ts";

/**
 * What a node is made of, as a script that prints one line for each thing: files with mode, owner and digest (in /etc
 * with the time of their last change too), units and what they run, processes, mounts, links, addresses, routes,
 * packet filter rules, namespaces, control groups. Left out is what the engine and the kubelet keep of their own
 * images and pods, what the host's daemons write all the time, and this script itself.
 */
const script = `
set -eu
cd /
others='-path ./proc -o -path ./sys -o -path ./dev -o -path ./tmp -o -path ./var/lib/containerd
  -o -path ./var/lib/kubelet/pods -o -path ./var/lib/kubelet/image_manager
  -o -path ./var/lib/kubelet/*_pods_state -o -path ./var/lib/systemd -o -path ./var/log -o -path ./run/containerd
  -o -path ./run/systemd -o -path ./run/udev -o -path ./run/log -o -path ./run/cni'
set -f
find . \\( $others \\) -prune -o -printf '%p %y %m %U:%G %l\\n'
find . \\( $others \\) -prune -o -type f -print0 | xargs -0 sha256sum | sed 's/^/sha256 /'
find ./etc -type f -printf 'changed %p %T@\\n' | sed 's/[.][0-9]*$//'
find ./tmp ./var/log ./run/cni -path ./var/log/journal -prune -o -printf 'name %p\\n' 2>/dev/null
systemctl list-unit-files --plain --no-legend | awk '{ print "unit-file", $1, $2 }'
systemctl list-units --all --plain --no-legend --type=service,socket,timer,target,path | awk '{ print "unit", $1, $2 }'
systemctl show kubelet containerd -p ExecStart -p Environment -p EnvironmentFiles -p DropInPaths |
  sed -n -E 's/ ?; (start_time|stop_time|pid|code|status)=[^;}]*//g; /./s/^/setting /p'
awk '{ print "mount", $5, $(NF-2), $(NF-1) }' /proc/self/mountinfo
ip -o link | sed -E 's/^[0-9]+: ([^:]+):.* mtu ([0-9]+).*/interface \\1 \\2/'
ip -o address | awk '{ print "address", $2, $4 }'
ip -o route show table all | sed 's/^/route /'
ip rule | sed 's/^/rule /'
for save in iptables-save ip6tables-save; do $save | sed -E "/^#/d; s/ \\[[0-9]+:[0-9]+\\]//; s/^/$save /"; done
set +f
for p in /proc/[0-9]*; do
  # Not ourselves, and no process that ended meanwhile.
  if [ $p = /proc/$$ ] || grep -qs "^PPid:.$$\\$" $p/status; then continue; fi
  tr '\\0' ' ' <$p/cmdline 2>/dev/null | sed 's/^/process /; s/$/\\n/' | sed '/^process sleep /d' || true
done
for kind in net pid ipc uts mnt; do
  for each in /proc/[0-9]*/ns/$kind; do readlink $each 2>/dev/null || true; done | sort -u | sed 's/^/namespace /'
done
cd /sys/fs/cgroup
find . -type d -printf 'cgroup %p\\n'
`;

/** All that can be told of a node, sorted. Two of these are equal when the node is what it was. */
export const nodeListing = async (node: Pick<Node, "exec">): Promise<string[]> =>
  numbered((await node.exec(["bash", "-c", script])).split("\n").filter(Boolean).sort());

/** Equal lines get a number each, so that one more or less of them is a difference. */
const numbered = (lines: readonly string[]): string[] => {
  const seen = new Map<string, number>();
  return lines.map((line) => {
    const count = (seen.get(line) ?? 0) + 1;
    seen.set(line, count);
    return count === 1 ? line : `${line} (${count})`;
  });
};

/** What the second listing has more (+) and less (-) than the first. */
export const difference = (before: readonly string[], after: readonly string[]): string[] => {
  const [had, has] = [new Set(before), new Set(after)];
  return [
    ...before.filter((line) => !has.has(line)).map((line) => `- ${line}`),
    ...after.filter((line) => !had.has(line)).map((line) => `+ ${line}`),
  ];
};
