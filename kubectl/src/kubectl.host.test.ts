import { copyFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { type Client, createClient } from "@bulkhead/lib/kube/client.ts";
import { kubeconfigFile } from "@bulkhead/lib/kube/config.ts";
import {
  agentPods,
  controllerRevisions,
  daemonSets,
  nodeRuntimes,
  runtimeProfiles,
  templateRevisions,
} from "@bulkhead/lib/kube/resources.ts";
import { installCrds } from "@bulkhead/test/apiserver/crds.ts";
import { type ApiServer, startApiServer } from "@bulkhead/test/apiserver/start.ts";
import { writePlugin } from "@bulkhead/test/dev/plugin.ts";
import { tool } from "@bulkhead/test/tools/cache.ts";
import { outcome, run } from "@bulkhead/test/tools/run.ts";
import { load } from "js-yaml";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { nodes, pods } from "./cluster.ts";

/** The real kubectl with the built plugin on $PATH, against a real API server whose objects the test wrote. */

let server: ApiServer;
let client: Client;
let directory: string;

const env = () => ({
  KUBECONFIG: server.kubeconfig,
  PATH: [directory, join(process.execPath, ".."), process.env.PATH].join(delimiter),
});
const kubectl = (...args: string[]) => outcome([tool("kubectl"), ...args], { env: env() });
/** kubectl without the plugin; fails where it does. */
const admin = (...args: string[]) => run([tool("kubectl"), "--kubeconfig", server.kubeconfig, ...args]);
/** What the plugin writes, to a terminal (util-linux' script) or into a pipe. */
const shown = async (terminal: boolean, words: string, noColor = "-u NO_COLOR"): Promise<string> => {
  const command = `env ${noColor} ${tool("kubectl")} bulkhead ${words}`;
  const argv = terminal ? ["script", "-qec", command, "/dev/null"] : ["sh", "-c", command];
  const { code, stdout } = await outcome(argv, { env: env() });
  expect(code).toBe(0);
  return stdout;
};
const bulkhead = (...args: string[]) => kubectl("bulkhead", ...args);

const at = new Date(Math.floor(Date.now() / 1000) * 1000 - 10_000);
const later = (seconds: number): string =>
  new Date(at.getTime() + seconds * 1000).toISOString().replace(".000Z", "Z");

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "bh-plugin-"));
  await writePlugin(directory);
  server = await startApiServer();
  client = createClient({ config: await kubeconfigFile(server.kubeconfig) });
});
afterAll(async () => {
  await client?.close();
  await server?.[Symbol.asyncDispose]();
  if (directory !== undefined) await rm(directory, { recursive: true });
});

test("on a cluster without Bulkhead the doctor says so and fails", async () => {
  const { code, stdout } = await bulkhead("doctor");
  expect(code).toBe(1);
  expect(stdout).toContain("NotInstalled");
  expect(stdout).toContain("helm install");
});

describe("With a profile on a node", () => {
  beforeAll(async () => {
    await installCrds(client);
    await client.create(runtimeProfiles, {
      metadata: { name: "sandboxed" },
      spec: { handler: { gvisor: { platform: "systrap" } } },
    } as never);
    await client.create(nodes, { metadata: { name: "n1" } });
    await client.create(nodeRuntimes, { metadata: { name: "n1" }, spec: { profiles: [] } } as never);
    await client.patch(
      nodeRuntimes,
      "n1",
      {
        status: {
          heartbeat: new Date().toISOString(),
          engine: {
            name: "containerd",
            version: "2.4.2",
            socket: "/run/containerd/containerd.sock",
            fronted: true,
          },
          profiles: [
            {
              name: "sandboxed",
              phase: "Ready",
              revision: "0123456789",
              reason: "CanaryPassed",
              message: "",
              canary: {
                passed: true,
                at: later(0),
                startSeconds: 0.5,
                kernel: "4.19.0-gvisor",
                assertions: ["kernel-differs"],
                failures: 0,
              },
            },
          ],
        },
      },
      { subresource: "status" },
    );
    await client.patch(
      runtimeProfiles,
      "sandboxed",
      {
        status: {
          observedGeneration: 1,
          nodes: { desired: 1, updated: 1, ready: 1, failed: 0 },
          updateRevision: "0123456789",
          conditions: [
            {
              type: "Ready",
              status: "True",
              reason: "AllNodesReady",
              message: "1 of 1 nodes ready",
              lastTransitionTime: later(0),
            },
          ],
        },
      },
      { subresource: "status" },
    );
    await client.create(pods, {
      metadata: { name: "web", namespace: "default" },
      spec: { containers: [{ name: "web", image: "web" }], nodeName: "n1" },
    } as never);
    await client.patch(
      pods,
      "web",
      {
        status: {
          phase: "Running",
          startTime: later(0),
          containerStatuses: [
            {
              name: "web",
              containerID: "containerd://abc",
              image: "web",
              imageID: "",
              ready: true,
              restartCount: 0,
              state: { running: { startedAt: later(2) } },
            },
          ],
        },
      },
      { subresource: "status", namespace: "default" },
    );
  });

  test("status lists it, for people and for machines", async () => {
    const { code, stdout } = await bulkhead("status");
    expect(code).toBe(0);
    expect(stdout).toMatch(
      /^NAME +WALL +CLASS +READY +PODS +STATE +AGE\nsandboxed +application kernel \(gVisor\)/,
    );
    expect(stdout).not.toContain("\u001b");
    const wide = await bulkhead("status", "-o", "wide");
    expect(wide.stdout).toContain("0123456789");
    const json = JSON.parse((await bulkhead("status", "-o", "json")).stdout);
    expect(json).toMatchObject([{ name: "sandboxed", state: "AllNodesReady", healthy: true }]);
    expect(load((await bulkhead("status", "-o", "yaml")).stdout)).toEqual([
      { ...json[0], ageMs: expect.any(Number) },
    ]);
  });

  test.each([
    ["on a terminal", true, "status"],
    ["through a pipe where they are asked for", false, "status --color always"],
  ])("colours come %s", async (_where, terminal, words) => {
    expect(await shown(terminal, words)).toContain("\u001b[32m");
  });
  test.each([
    ["with NO_COLOR", "status", "NO_COLOR=1"],
    ["where none are wanted", "status --color never", undefined],
    ["for machines", "status -o json", undefined],
  ])("no colours come to a terminal %s", async (_where, words, noColor) => {
    const text = await shown(true, words, noColor);
    expect(text).toContain("AllNodesReady");
    expect(text).not.toContain("\u001b");
  });

  test("status of one profile tells its nodes", async () => {
    const { stdout } = await bulkhead("status", "sandboxed");
    expect(stdout).toMatch(/n1 +Ready +passed +4\.19\.0-gvisor/);
  });

  test("explain tells the hops of a pod that the fronted engine runs", async () => {
    const { code, stdout } = await bulkhead("explain", "default/web");
    expect(code).toBe(0);
    for (const hop of ["kubelet", "bulkhead runtime", "containerd", "container web"])
      expect(stdout).toContain(hop);
    expect(stdout).toContain("2s");
  });

  test("a pod that is not there is an error of one line, with exit code 1", async () => {
    const { code, stdout, stderr } = await bulkhead("explain", "nothing");
    expect([code, stdout]).toEqual([1, ""]);
    expect(stderr.trim()).toMatch(/^error: Cannot get Pod "default\/nothing": .*not found$/);
  });

  test("tenants counts pods of a namespace by wall", async () => {
    const { stdout } = await bulkhead("tenants", "-n", "default", "-o", "json");
    expect(JSON.parse(stdout)).toMatchObject([{ namespace: "default", profile: "", pods: 1 }]);
  });

  test("doctor finds that no operator works", async () => {
    const { code, stdout } = await bulkhead("doctor", "-o", "json");
    expect(code).toBe(1);
    expect(JSON.parse(stdout).map((each: { reason: string }) => each.reason)).toEqual(["NoOperator"]);
  });

  test("rollout status ends at once when all is there; pause and resume write the spec once", async () => {
    expect((await bulkhead("rollout", "status", "sandboxed")).stdout).toContain("is rolled out");
    expect((await bulkhead("rollout", "pause", "sandboxed")).stdout).toContain("sandboxed paused");
    expect((await client.get(runtimeProfiles, "sandboxed")).spec.rollout.paused).toBe(true);
    expect((await bulkhead("rollout", "pause", "sandboxed")).stdout).toContain("is paused already");
    expect((await bulkhead("rollout", "resume", "sandboxed")).stdout).toContain("sandboxed resumed");
    // Nobody works here: the operator has not seen the newest spec.
    const { code, stderr } = await bulkhead("rollout", "status", "sandboxed", "--timeout", "1");
    expect(code).toBe(1);
    expect(stderr).toContain("is not rolled out after 1 s");
  });

  test("rollout history and undo: back to what a profile was, fields that it had not and all", async () => {
    const namespace = "bulkhead-system";
    await client.create(
      { apiVersion: "v1", kind: "Namespace", plural: "namespaces", namespaced: false },
      { metadata: { name: namespace } },
    );
    const { spec } = await client.get(runtimeProfiles, "sandboxed");
    const { artifact, engine, probe } = spec;
    const keep = (hash: string, revision: number, handler: object) =>
      client.create(controllerRevisions, {
        metadata: { name: `sandboxed-${hash}`, namespace, labels: { "bulkhead.dev/profile": "sandboxed" } },
        revision,
        data: { handler, artifact, engine, probe },
      } as never);
    await keep("1111111111", 1, { runc: {} });
    await keep("2222222222", 2, spec.handler);
    expect((await bulkhead("rollout", "history", "sandboxed")).stdout).toMatch(
      /REVISION +HASH +HANDLER +CREATED +CURRENT\n1 +1111111111 +runc .*\n2 +2222222222 +gvisor .* yes/,
    );

    expect((await bulkhead("rollout", "undo", "sandboxed")).stdout).toContain(
      "goes back to revision 1 (1111111111)",
    );
    expect((await client.get(runtimeProfiles, "sandboxed")).spec).toEqual({ ...spec, handler: { runc: {} } });
    expect((await bulkhead("rollout", "undo", "sandboxed", "--to-revision", "2")).code).toBe(0);
    expect((await client.get(runtimeProfiles, "sandboxed")).spec).toEqual(spec);
    expect((await bulkhead("rollout", "undo", "sandboxed", "--to-revision", "2")).stdout).toContain(
      "is revision 2 (2222222222) already",
    );
    const { code, stderr } = await bulkhead("rollout", "undo", "sandboxed", "--to-revision", "9");
    expect(code).not.toBe(0);
    expect(stderr).toContain("no revision 9 is kept");
  });

  test("rollout restart makes a revision of the same content, and undo leads back before it", async () => {
    const namespace = "bulkhead-system";
    const { spec } = await client.get(runtimeProfiles, "sandboxed");
    const { handler, artifact, engine, probe } = spec;
    expect((await bulkhead("rollout", "restart", "sandboxed")).stdout).toContain("sandboxed restarted");
    const restarted = (await client.get(runtimeProfiles, "sandboxed")).spec;
    const { restartedAt } = restarted.rollout;
    expect(restarted).toEqual({ ...spec, rollout: { ...spec.rollout, restartedAt } });
    expect(Date.now() - Date.parse(restartedAt ?? "")).toBeLessThan(60_000);

    // As the operator keeps it.
    await client.create(controllerRevisions, {
      metadata: { name: "sandboxed-3333333333", namespace, labels: { "bulkhead.dev/profile": "sandboxed" } },
      revision: 3,
      data: { handler, artifact, engine, probe, restartedAt },
    } as never);
    expect((await bulkhead("rollout", "undo", "sandboxed")).stdout).toContain("goes back to revision 2");
    expect((await client.get(runtimeProfiles, "sandboxed")).spec).toEqual(spec);

    await bulkhead("rollout", "pause", "sandboxed");
    const { code, stderr } = await bulkhead("rollout", "restart", "sandboxed");
    expect([code, stderr]).toEqual([1, expect.stringContaining("its rollout is paused")]);
    await bulkhead("rollout", "resume", "sandboxed");
  });

  test("rollout without a profile tells of Bulkhead's own version, and holds it", async () => {
    const namespace = "bulkhead-system";
    const { code, stderr } = await bulkhead("rollout", "status");
    expect([code, stderr]).toEqual([
      1,
      expect.stringContaining("Cannot find the DaemonSet of Bulkhead's agents"),
    ]);
    const agent = { "app.kubernetes.io/component": "node-agent" };
    const made = await client.create(daemonSets, {
      metadata: {
        name: "bulkhead-node-agent",
        namespace,
        annotations: { "bulkhead.dev/rollout": JSON.stringify({ deadlineSeconds: 10 }) },
      },
      spec: {
        updateStrategy: { type: "OnDelete" },
        selector: { matchLabels: agent },
        template: {
          metadata: { labels: agent },
          spec: {
            containers: [{ name: "c", image: "none", env: [{ name: "AGENT_VERSION", value: "2.0" }] }],
          },
        },
      },
    } as never);
    expect((await bulkhead("rollout", "status", "--no-watch")).stdout).toContain(
      "Waiting for the DaemonSet's",
    );
    // Nobody works here: what the DaemonSet's controller and kubelets do, the test does.
    const { uid, generation } = made.metadata;
    await client.replace(
      daemonSets,
      {
        ...made,
        status: {
          ...{ currentNumberScheduled: 1, numberMisscheduled: 0, numberReady: 0 },
          ...{ desiredNumberScheduled: 1, observedGeneration: generation },
        },
      } as never,
      { subresource: "status" },
    );
    const of = (hash: string) => ({
      namespace,
      labels: { ...agent, "controller-revision-hash": hash },
      ownerReferences: [
        { apiVersion: "apps/v1", kind: "DaemonSet", name: "bulkhead-node-agent", uid, controller: true },
      ],
    });
    for (const [revision, hash] of ["old", "new"].entries())
      await client.create(templateRevisions, {
        metadata: { name: `r-${hash}`, ...of(hash) },
        revision,
        data: {},
      } as never);
    await client.create(agentPods, {
      metadata: { name: "agent", ...of("old") },
      spec: { nodeName: "node-1", containers: [{ name: "c", image: "none" }] },
    } as never);
    expect((await bulkhead("rollout", "status", "--no-watch")).stdout).toBe(
      "Bulkhead 2.0: RollingOut: 0 of 1 nodes have it, 0 updating, 1 waiting\n",
    );
    expect((await bulkhead("rollout", "pause")).stdout).toBe("daemonset.apps/bulkhead-node-agent paused\n");
    expect((await bulkhead("rollout", "status", "--no-watch")).stdout).toContain("Bulkhead 2.0: Paused");
    expect((await bulkhead("rollout", "pause")).stdout).toContain("is paused already");
    expect((await bulkhead("rollout", "resume")).stdout).toContain("bulkhead-node-agent resumed");
    await client.delete(agentPods, "agent", { namespace });
    await client.create(agentPods, {
      metadata: { name: "agent-2", ...of("new") },
      spec: { nodeName: "node-1", containers: [{ name: "c", image: "none" }] },
    } as never);
    const stopped = await bulkhead("rollout", "status", "--timeout", "30");
    expect(stopped.code).toBe(1);
    expect(stopped.stderr).toMatch(
      /Bulkhead 2\.0: FailureThreshold: .*node-1: AgentNotReady: its pod agent-2/,
    );
  });

  test("whoever has the rights that docs/kubectl.md names, and no others, can read all of it, and write nothing", async () => {
    const page = await readFile(join(import.meta.dirname, "../../docs/kubectl.md"), "utf8");
    const roles = join(directory, "roles.yaml");
    await writeFile(roles, /```yaml\n(.*?)```/s.exec(page)?.[1] ?? "");
    const home = ["-n", "bulkhead-system"];
    const to = (kind: string) => [`--${kind}=bulkhead-reader`, "--serviceaccount=bulkhead-system:reader"];
    await admin("create", "-f", roles);
    await admin("create", "clusterrolebinding", "reader", ...to("clusterrole"));
    await admin(...home, "create", "rolebinding", "reader", ...to("role"));
    await admin(...home, "create", "serviceaccount", "reader");
    const token = (await admin(...home, "create", "token", "reader")).trim();
    const kubeconfig = join(directory, "reader");
    await copyFile(server.kubeconfig, kubeconfig);
    const config = (...args: string[]) => admin("--kubeconfig", kubeconfig, "config", ...args);
    await config("set-credentials", "reader", `--token=${token}`);
    await config("set-context", "--current", "--user=reader");
    const read = (...args: string[]) => bulkhead(...args, "--kubeconfig", kubeconfig);

    for (const args of [
      ["status"],
      ["status", "sandboxed"],
      ["explain", "web"],
      ["tenants"],
      ["rollout", "status", "sandboxed", "--no-watch"],
      ["rollout", "status", "--no-watch"],
      ["rollout", "history", "sandboxed"],
    ])
      expect(await read(...args), args.join(" ")).toMatchObject({
        stderr: expect.not.stringMatching(/forbidden/),
      });
    expect((await read("doctor")).stdout).toContain("NoOperator");
    for (const args of [
      ["rollout", "pause", "sandboxed"],
      ["rollout", "restart", "sandboxed"],
      ["rollout", "pause"],
    ])
      expect(await read(...args), args.join(" ")).toMatchObject({
        code: 1,
        stderr: expect.stringMatching(/^error: .*forbidden[^\n]*\n$/),
      });
  });
  test("a node that is not there, a time that is none and a kubeconfig that is none are errors", async () => {
    for (const [args, said] of [
      [["doctor", "n9"], /^error: Cannot find node "n9"/],
      [["rollout", "status", "sandboxed", "--timeout", "soon"], /Expected seconds, or a time such as 90s/],
      [["rollout", "undo", "sandboxed", "--to-revision", "two"], /Expected a number/],
      [["status", "--kubeconfig", "/nowhere"], /^error: Cannot read kubeconfig "\/nowhere"/],
      [["status", "--context", "other"], /^error: Cannot use context "other"/],
    ] as const) {
      const { code, stderr } = await bulkhead(...args);
      expect(code, args.join(" ")).toBe(1);
      expect(stderr).toMatch(said);
    }
  });

  test("kubectl completes subcommands, profiles and flags", async () => {
    const complete = async (...words: string[]) =>
      (await kubectl("__complete", "bulkhead", ...words)).stdout.split("\n");
    expect(await complete("sta")).toContain("status");
    expect(await complete("rollout", "status", "")).toContain("sandboxed");
    expect(await complete("rollout", "res")).toEqual(expect.arrayContaining(["resume", "restart"]));
    expect(await complete("doctor", "--sta")).toContain("--stale-after");
  });
});
