import { paths } from "@bulkhead/lib/api/paths.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bulkheadCluster } from "../cluster/bulkhead.ts";
import { type Cluster, type Node, until } from "../cluster/cluster.ts";
import { first, inNamespace, type Namespace, type Pod, podOf } from "../pods/kube.ts";
import { eventsOf, nodeRuntime } from "./agent.ts";

/** What somebody changes by hand on a node: found, told by an Event, put back; and nothing else is disturbed. */

let cluster: Cluster;
let ns: Namespace;
let before: Pod[];
const profiles = ["standard", "sandboxed"];

beforeAll(async () => {
  cluster = await bulkheadCluster();
  ns = inNamespace(cluster, "drift");
  await ns.create();
  const image = `${cluster.registry}/bulkhead/test:1`;
  before = await Promise.all(
    cluster.nodes.flatMap((node) =>
      profiles.map((name) => ns.run(podOf(`${name}-${node.name}`, name, image, {}, { nodeName: node.name }))),
    ),
  );
});
afterAll(() => ns?.destroy());

/** The processes that a repair may disturb: pids of the runtime and of the kubelet. */
const pids = async (node: Node): Promise<{ runtime: string; kubelet: string }> => {
  const pid = async (unit: string) => (await node.exec(["systemctl", "show", "-P", "MainPID", unit])).trim();
  return { runtime: await pid(paths.unit), kubelet: await pid("kubelet.service") };
};
const read = (node: Node, path: string): Promise<string> => node.exec(["base64", "-w0", path]);
const repaired = (node: Node, path: string, body: string): Promise<void> =>
  until(AbortSignal.timeout(40_000), 40_000, `${path} to be put back on ${node.name}`, async () => {
    const today = await node.try(["base64", "-w0", path]);
    return today.code === 0 && today.stdout === body;
  });
/** An Event of that kind that names the file, newer than `since`. */
const told = (node: Node, since: number, ...words: string[]): Promise<void> =>
  until(AbortSignal.timeout(60_000), 60_000, `an Event Drifted that says ${words.join(" and ")}`, async () =>
    (await eventsOf(cluster, node.name)).some(
      ({ reason, type, note, at }) =>
        reason === "Drifted" &&
        type === "Warning" &&
        at >= since &&
        words.every((word) => note.includes(word)),
    ),
  );
const append = (node: Node, path: string, text: string) =>
  node.exec(["sh", "-c", `printf '%s' "$1" >>"$2"`, "sh", text, path]);

describe("A file that somebody changes on a node is found, told and put back:", () => {
  test("a handler, changed on one node and removed on the other; nothing is restarted", async () => {
    const [left, right] = [cluster.node("node-1"), cluster.node("node-2")];
    const path = `${paths.handlers}/standard.yaml`;
    const since = Date.now() - 1000;
    const [good, running] = await Promise.all([
      Promise.all([read(left, path), read(right, path)]),
      Promise.all([pids(left), pids(right)]),
    ]);
    await Promise.all([append(left, path, "# edited\n"), right.exec(["rm", path])]);
    await Promise.all([repaired(left, path, good[0]), repaired(right, path, good[1])]);
    await Promise.all([told(left, since, "standard", path), told(right, since, "standard", path)]);
    expect(await Promise.all([pids(left), pids(right)])).toEqual(running);
  });

  test("the unit edited on one node and disabled on the other; nothing is restarted", async () => {
    const [left, right] = [cluster.node("node-1"), cluster.node("node-2")];
    const path = `/etc/systemd/system/${paths.unit}`;
    const wanted = `/etc/systemd/system/multi-user.target.wants/${paths.unit}`;
    const since = Date.now() - 1000;
    const good = await read(left, path);
    const running = await Promise.all([pids(left), pids(right)]);
    await Promise.all([
      left.exec([
        "sh",
        "-c",
        `sed -i s/KillMode=process/KillMode=control-group/ ${path} && systemctl daemon-reload`,
      ]),
      right.exec(["systemctl", "disable", paths.unit]),
    ]);
    await Promise.all([
      repaired(left, path, good),
      until(AbortSignal.timeout(40_000), 40_000, "the unit to be enabled again", async () =>
        (await right.try(["systemctl", "is-enabled", paths.unit])).stdout.startsWith("enabled"),
      ),
    ]);
    await Promise.all([told(left, since, path), told(right, since, wanted)]);
    // What systemd would do at the next stop is what the file says.
    expect((await left.exec(["systemctl", "show", "-P", "KillMode", paths.unit])).trim()).toBe("process");
    expect(await Promise.all([pids(left), pids(right)])).toEqual(running);
  });

  test("the runtime's configuration, which was not read since", async () => {
    const node = cluster.node("node-1");
    const since = Date.now() - 1000;
    const [good, running] = [await read(node, paths.config), await pids(node)];
    await append(node, paths.config, "broken: [\n");
    await repaired(node, paths.config, good);
    await told(node, since, paths.config);
    expect(await pids(node)).toEqual(running);
  });

  test("a program of the staged version restarts nothing; the daemon's own code restarts the daemon alone", async () => {
    const [left, right] = [cluster.node("node-1"), cluster.node("node-2")];
    const version = async (node: Node) =>
      (await node.exec(["readlink", "-f", `${paths.opt}/current`])).trim();
    const [conmon, main] = [`${await version(left)}/bin/conmon`, `${await version(right)}/runtime/main.mjs`];
    const since = Date.now() - 1000;
    const digest = async (node: Node, path: string) =>
      (await node.try(["sha256sum", path])).stdout.split(" ")[0];
    const good = [await digest(left, conmon), await digest(right, main)];
    const running = await Promise.all([pids(left), pids(right)]);
    // conmon runs: its file can only be replaced. main.mjs is written over in place.
    await Promise.all([
      left.exec(["sh", "-c", `echo broken >${conmon}.x && mv ${conmon}.x ${conmon}`]),
      append(right, main, "// edited"),
    ]);
    await until(AbortSignal.timeout(40_000), 40_000, "both to be put back", async () =>
      [await digest(left, conmon), await digest(right, main)].every((now, i) => now === good[i]),
    );
    await Promise.all([told(left, since, "bin/conmon"), told(right, since, "runtime/main.mjs")]);
    await until(AbortSignal.timeout(20_000), 20_000, "the runtime to be restarted", async () => {
      const { runtime } = await pids(right);
      return runtime !== "0" && runtime !== running[1]?.runtime;
    });
    expect(await pids(left)).toEqual(running[0]);
    expect((await pids(right)).kubelet).toBe(running[1]?.kubelet);
  });
});

test("no pod was disturbed by any of it, and every profile is Ready", async () => {
  for (const pod of before) {
    const now = await ns.until(pod.metadata.name, (seen) => first(seen)?.ready === true);
    expect(first(now)?.containerID).toBe(first(pod)?.containerID);
    expect(first(now)?.restartCount).toBe(0);
    expect(await ns.exec(pod.metadata.name, "echo", "alive")).toBe("alive\n");
  }
  for (const { name } of cluster.nodes) {
    await until(AbortSignal.timeout(30_000), 30_000, `${name} to be 2/2`, async () => {
      return (await nodeRuntime(cluster, name)).status?.ready === "2/2";
    });
  }
});
