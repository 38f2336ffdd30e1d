import { expect } from "vitest";
import type { Desired } from "../../node-agent/src/protocol.ts";
import { eventually } from "../lifecycle/life.ts";
import type { EngineNode } from "./node.ts";

/** What the tests of the node's own engines ask for, and how they look at what came of it. */

type Profile = Desired["profiles"][number];

export const profile = (name: string, revision: string, rest: Partial<Profile> = {}): Profile => ({
  name,
  revision,
  handler: { runc: {} },
  artifact: { bundled: true },
  engine: "node",
  probe: { interval: "60s", assertIsolation: true },
  ...rest,
});

/** gVisor from an artifact, on the node's engine. */
export const gvisor = (
  name: string,
  revision: string,
  image: string,
  options: { network?: "host"; overlay?: "directory" } = {},
): Profile =>
  profile(name, revision, {
    handler: { gvisor: { platform: "systrap", network: "sandbox", overlay: "memory", ...options } },
    artifact: { image },
  });

/** A shim that nothing of Bulkhead's knows, from an artifact (test/engines/clamped.ts). */
export const copied = (name: string, revision: string, image: string): Profile =>
  profile(name, revision, {
    handler: {
      shim: {
        runtimeType: "io.containerd.copied.v2",
        wall: "namespaces",
        sandboxApi: false,
        deadlines: { create: 120, start: 120, stop: 30 },
      },
    },
    artifact: { image },
  });

export const statusOf = async (node: EngineNode, name: string) =>
  (await node.report()).status.profiles?.find((each) => each.name === name);

/** The agent is through, and the profile is as it should be. */
export const settled = (node: EngineNode, name: string, want: object, seconds = 200): Promise<void> =>
  eventually(async () => {
    const report = await node.report();
    const status = report.status.profiles?.find((each) => each.name === name);
    expect(status, status?.message).toMatchObject(want);
    expect(node.through(report)).toBe(true);
  }, seconds);

export const pidOf = async (node: EngineNode, unit: string): Promise<string> =>
  (await node.exec(["systemctl", "show", "-P", "MainPID", unit])).trim();

/** Id and process of the static pod's container. */
const running = async (node: EngineNode): Promise<string> => {
  const template = "{{.status.id}} {{.info.pid}}";
  const script = `crictl ps -q --name main | xargs -r crictl inspect -o go-template --template '${template}'`;
  return (await node.exec(["sh", "-c", script])).trim();
};

/** The same, once the engine and the kubelet are up, and the engine is not just being restarted. */
export const podRuns = (node: EngineNode): Promise<string> =>
  eventually(async () => {
    const found = await running(node);
    expect(found).toMatch(/^[0-9a-f]{64} \d+$/);
    return found;
  }, 100);

/** The static pod runs as it did: the same container, the same process. While the engine restarts nobody can tell. */
export const runsAsBefore = (node: EngineNode, before: string): Promise<void> =>
  eventually(async () => expect(await running(node)).toBe(before), 30);

/**
 * What is left out of a node's listing: groups that the kubelet makes and removes with the pods of a class, and the log
 * directories of pods that are gone, which it removes once a minute; gVisor's empty network namespace, the sockets of the
 * lines of shell before it, and crun's directory.
 */
export const withoutOthers = (lines: string[]): string[] =>
  lines.filter(
    (line) =>
      !/^cgroup \.\/[^/]+\/kubepods\/|\.\/var\/log\/pods\//.test(line) &&
      !/null-netns|\.\/run\/(clamped|crun)\b/.test(line),
  );

/** All profiles go, and with them everything of Bulkhead's. */
export const leave = async (node: EngineNode): Promise<void> => {
  await node.want([]);
  await eventually(async () => {
    const report = await node.report();
    expect(report.status.profiles).toEqual([]);
    expect(node.through(report)).toBe(true);
  }, 200);
  await eventually(async () => expect((await node.try(["ls", "/opt/bulkhead"])).code).not.toBe(0), 60);
  await node.exec(["systemctl", "stop", "installer"]);
};
