import { beforeAll, describe, expect, test } from "vitest";
import { bulkheadCluster, namespace } from "../cluster/bulkhead.ts";
import type { Cluster, Node } from "../cluster/cluster.ts";
import { inNamespace, podOf } from "../pods/kube.ts";
import { agentOn, execIn, kubectlAs, nodeRuntime, podsOf } from "./agent.ts";

/** Who may do what, asked of the live cluster: of its API server, and of the pods that run there. */

let cluster: Cluster;
let own: Node;
let other: Node;
let token: string;

const tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token";

beforeAll(async () => {
  cluster = await bulkheadCluster();
  own = cluster.node("node-1");
  other = cluster.node("node-2");
  token = await execIn(cluster, await agentOn(cluster, own), "reporter", "/bin/busybox", "cat", tokenFile);
});

const asReporter = (argv: string[], input?: string) => kubectlAs(cluster, token, argv, input);
/** What the reporter itself sends: it may not read a status, which kubectl patch does first. */
const applyStatus = (node: Node, status: object, more: object = {}) =>
  asReporter(
    [
      "apply",
      "--server-side",
      "--force-conflicts",
      "--field-manager=test",
      "--subresource=status",
      "-f",
      "-",
    ],
    JSON.stringify({
      apiVersion: "bulkhead.dev/v1alpha1",
      kind: "NodeRuntime",
      metadata: { name: node.name },
      ...more,
      status,
    }),
  );

describe("The token of a node's reporter", () => {
  test("writes the status of that node's NodeRuntime", async () => {
    const { kernel = "" } = (await nodeRuntime(cluster, own.name)).status ?? {};
    expect(await applyStatus(own, { kernel })).toMatchObject({ code: 0, stderr: "" });
  });

  test("cannot write another node's status, and is told why", async () => {
    const before = (await nodeRuntime(cluster, other.name)).status?.kernel;
    const { code, stderr } = await applyStatus(other, { kernel: "made up" });
    expect(code).not.toBe(0);
    expect(stderr).toContain('the agent of node "node-1" may not write the NodeRuntime of "node-2"');
    expect((await nodeRuntime(cluster, other.name)).status?.kernel).toBe(before);
  });

  test.each(["node-1", "node-2"])("cannot write the spec of NodeRuntime %s", async (name) => {
    const { code, stderr } = await asReporter([
      ...["patch", "noderuntime", name, "--type=merge", "-p", '{"spec":{"profiles":[]}}'],
    ]);
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/forbidden: .*cannot patch resource "noderuntimes"/);
  });

  test("cannot change a spec by the way of the status", async () => {
    const before = (await nodeRuntime(cluster, own.name)).spec;
    await applyStatus(own, {}, { spec: { profiles: [] } });
    expect((await nodeRuntime(cluster, own.name)).spec).toEqual(before);
  });

  test.each([
    ["read secrets", ["get", "secrets", "-A"]],
    ["read pods", ["get", "pods", "-A"]],
    ["read nodes", ["get", "nodes"]],
    ["label its node", ["label", "node", "node-1", "x=y"]],
    ["read profiles", ["get", "runtimeprofiles"]],
    ["delete a NodeRuntime", ["delete", "noderuntime", "node-1"]],
    ["make tokens", ["create", "token", "bulkhead-operator", "-n", namespace]],
    ["take the operator's Lease", ["get", "lease", "bulkhead-operator", "-n", namespace]],
  ])("cannot %s", async (_title, argv) => {
    const { code, stderr } = await asReporter(argv);
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/forbidden/i);
  });
});

describe("A service account of the chart has these rights and no others:", () => {
  // What the API server gives to everybody who is known to it (system:basic-user, system:discovery).
  const everybody = (resource: string) =>
    /^self\w+\.(authentication|authorization)\.k8s\.io$/.test(resource) || resource === "";

  const made = "create delete list update watch";
  const rights: Record<string, Record<string, string>> = {
    "bulkhead-node-agent": {
      "events.events.k8s.io": "create patch",
      "leases.coordination.k8s.io": "create patch",
      "noderuntimes.bulkhead.dev": "get list watch",
      "noderuntimes.bulkhead.dev/status": "patch",
    },
    "bulkhead-operator": {
      "controllerrevisions.apps": "create delete list patch watch",
      "daemonsets.apps": "list watch",
      "events.events.k8s.io": "create patch",
      "leases.coordination.k8s.io": "create list watch",
      "leases.coordination.k8s.io [bulkhead-operator]": "get update",
      "mutatingadmissionpolicies.admissionregistration.k8s.io": made,
      "mutatingadmissionpolicybindings.admissionregistration.k8s.io": made,
      namespaces: "list watch",
      "noderuntimes.bulkhead.dev": "create delete list patch watch",
      nodes: "get list patch watch",
      pods: "delete get list watch",
      "runtimeclasses.node.k8s.io": made,
      "runtimeprofiles.bulkhead.dev": "get list patch watch",
      "runtimeprofiles.bulkhead.dev/status": "patch",
      "validatingadmissionpolicies.admissionregistration.k8s.io": made,
      "validatingadmissionpolicybindings.admissionregistration.k8s.io": made,
    },
    "bulkhead-uninstall": {
      "leases.coordination.k8s.io [bulkhead-operator]": "get",
      "noderuntimes.bulkhead.dev": "list",
      pods: "list",
      "runtimeprofiles.bulkhead.dev": "delete list",
    },
  };
  /** Rows of `kubectl auth can-i --list`: resource, non-resource URLs, names, verbs. */
  const listed = (text: string): Record<string, string> =>
    Object.fromEntries(
      text
        .split("\n")
        .slice(1)
        .map((line) => /^(\S*)\s+\[(.*?)\]\s+\[(.*?)\]\s+\[(.*?)\]/.exec(line))
        .filter((row) => row !== null)
        .filter(([, resource = ""]) => !everybody(resource))
        .map(([, resource, , names, verbs = ""]) => [
          names ? `${resource} [${names}]` : resource,
          verbs.split(" ").sort().join(" "),
        ]),
    );

  test.each(Object.keys(rights))("%s", async (account) => {
    const user = `system:serviceaccount:${namespace}:${account}`;
    const groups = ["system:serviceaccounts", `system:serviceaccounts:${namespace}`, "system:authenticated"];
    const text = await cluster.kubectl([
      ...["auth", "can-i", "--list", "-n", namespace, `--as=${user}`],
      ...groups.map((group) => `--as-group=${group}`),
    ]);
    expect(listed(text)).toEqual(rights[account]);
  });

  test("in another namespace none that is bound to the chart's", async () => {
    const text = await cluster.kubectl([
      ...["auth", "can-i", "--list", "-n", "default"],
      `--as=system:serviceaccount:${namespace}:bulkhead-operator`,
    ]);
    expect(Object.keys(listed(text)).filter((name) => name.includes("leases"))).toEqual([]);
  });
});

describe("An agent's pod", () => {
  test("mounts the token into the reporter alone, and the host into the installer alone", async () => {
    for (const { spec } of await podsOf(cluster, "node-agent")) {
      expect(spec.automountServiceAccountToken).toBe(false);
      const kinds = Object.fromEntries(
        spec.volumes.map(({ name, ...source }) => [name, Object.keys(source)]),
      );
      expect(kinds).toEqual({ socket: ["emptyDir"], host: ["hostPath"], token: ["projected"] });
      const mounts = Object.fromEntries(
        spec.containers.map(({ name, volumeMounts = [] }) => [name, volumeMounts.map((mount) => mount.name)]),
      );
      expect(mounts).toEqual({ reporter: ["socket", "token"], installer: ["socket", "host"] });
    }
  });

  test("runs the reporter without any power over its node", async () => {
    for (const { spec } of await podsOf(cluster, "node-agent")) {
      expect(spec.hostNetwork ?? false).toBe(false);
      expect(spec.hostIPC ?? false).toBe(false);
      const reporter = spec.containers.find(({ name }) => name === "reporter");
      expect(reporter?.securityContext).toEqual({
        allowPrivilegeEscalation: false,
        capabilities: { drop: ["ALL"] },
        readOnlyRootFilesystem: true,
        runAsGroup: 64473,
        runAsNonRoot: true,
        runAsUser: 64473,
        seccompProfile: { type: "RuntimeDefault" },
      });
    }
  });

  test("the reporter's process holds no capability and sees no file of the host", async () => {
    const pod = await agentOn(cluster, own);
    const status = await execIn(cluster, pod, "reporter", "/bin/busybox", "cat", "/proc/self/status");
    expect(status).toMatch(/^CapEff:\s0+$/m);
    expect(status).toMatch(/^CapBnd:\s0+$/m);
    expect(status).toMatch(/^NoNewPrivs:\s1$/m);
    const mounts = await execIn(cluster, pod, "reporter", "/bin/busybox", "cat", "/proc/self/mounts");
    expect(mounts).not.toMatch(/ \/host[ /]/);
    await expect(execIn(cluster, pod, "reporter", "/bin/busybox", "ls", "/proc/1/root/")).rejects.toThrow(
      /Permission denied/,
    );
  });

  test("the reporter reaches no process of the node: it cannot signal one nor read its environment", async () => {
    const ns = inNamespace(cluster, "powers");
    await ns.create();
    try {
      // The user of many images that are no root's, and of ours.
      const securityContext = { runAsUser: 65532, runAsGroup: 65532 };
      const image = `${cluster.registry}/bulkhead/test:1`;
      const victim = podOf("nonroot", "standard", image, {}, { nodeName: own.name, securityContext });
      await ns.run(victim);
      const agent = await agentOn(cluster, own);
      const asks = (...argv: string[]) => execIn(cluster, agent, "reporter", "/bin/busybox", ...argv);
      const ids = `for s in /proc/[0-9]*/status; do echo $s $(/bin/busybox grep ^Uid: $s); done`;
      const seen = (await asks("sh", "-c", ids)).matchAll(/^\/proc\/(\d+)\/status Uid: (\d+) /gm);
      const nonroot = [...seen].filter(([, , uid]) => uid === "65532").map(([, pid = ""]) => pid);
      expect(nonroot.length).toBeGreaterThan(0);
      for (const pid of nonroot) {
        await expect(asks("kill", "-0", pid)).rejects.toThrow(/not permitted/);
        await expect(asks("cat", `/proc/${pid}/environ`)).rejects.toThrow(/Permission denied/);
      }
    } finally {
      await ns.destroy();
    }
  });

  test("the installer's process finds no token, and the API server gives it nothing", async () => {
    const pod = await agentOn(cluster, own);
    await expect(
      execIn(cluster, pod, "installer", "/bin/busybox", "ls", "/var/run/secrets/kubernetes.io"),
    ).rejects.toThrow(/No such file/);
    const program = `fetch("https://" + process.env.KUBERNETES_SERVICE_HOST + "/apis/bulkhead.dev/v1alpha1/noderuntimes")
      .then((answer) => console.log(answer.status), (error) => console.log(error.message))`;
    const answer = await execIn(
      cluster,
      pod,
      "installer",
      "/bin/busybox",
      "env",
      "NODE_TLS_REJECT_UNAUTHORIZED=0",
      "/bundle/bin/node",
      "-e",
      program,
    );
    // Anonymous requests are answered 401 or, where they are allowed at all, 403.
    expect(answer.trim()).toMatch(/^40[13]$/);
  });
});
