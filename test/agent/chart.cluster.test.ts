import { loadAll } from "js-yaml";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { all, chart } from "../chart/values.ts";
import { bulkheadCluster, namespace } from "../cluster/bulkhead.ts";
import { type Cluster, until } from "../cluster/cluster.ts";
import { tool } from "../tools/cache.ts";
import { outcome } from "../tools/run.ts";
import { execIn, podsOf } from "./agent.ts";

/** What the API server says of the chart's manifests, and of the operator's way to lead. */

let cluster: Cluster;
const walled = "chart-restricted";

beforeAll(async () => {
  cluster = await bulkheadCluster();
  await cluster.kubectl(["create", "namespace", walled]);
  await cluster.kubectl(["label", "namespace", walled, "pod-security.kubernetes.io/enforce=restricted"]);
});
afterAll(() => cluster?.kubectl(["delete", "namespace", walled, "--wait=true"]));

type Manifest = { kind: string; metadata: object; spec: { template: { metadata: object; spec: object } } };
const render = async (values: object): Promise<string> =>
  cluster.helm(["template", "chart", chart, "--namespace", walled, "--values", "-"], {
    input: JSON.stringify(values),
  });

/** This cluster has no Prometheus operator, and so no such kinds. */
const withoutItsKinds = { ...all, metrics: { ...all.metrics, prometheusOperator: { enabled: false } } };

test("helm test finds that the operator works", async () => {
  const said = await cluster.helm(["test", "bulkhead", "--namespace", namespace, "--timeout", "2m"]);
  expect(said).toMatch(/Phase:\s+Succeeded/);
});

test("programs of the bundle bring all of their libraries: nothing else is in the image", async () => {
  const [pod] = await podsOf(cluster, "node-agent");
  for (const name of ["conmon", "crun"])
    expect(await execIn(cluster, pod!, "installer", `/bundle/bin/${name}`, "--version")).toContain(
      `${name} version`,
    );
});

describe("The API server", () => {
  test.each([
    ["default", {}],
    ["all optional", withoutItsKinds],
  ])("takes the manifests of %s values as they are", async (_title, values) => {
    const text = await cluster.kubectl(
      ["apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors=false", "-f", "-"],
      { input: await render(values) },
    );
    expect(text).toMatch(/daemonset\.apps\/\S+ created \(server dry run\)/);
    expect(text).toMatch(/validatingadmissionpolicy\.admissionregistration\.k8s\.io\/\S+ created/);
  });

  test("lets all pods but the agent's into a namespace of Pod Security restricted, and says what the agent's need", async () => {
    const manifests = (loadAll(await render({})) as (Manifest | null)[]).filter(
      (manifest) => manifest !== null,
    );
    const said: Record<string, string> = {};
    for (const { kind, spec } of manifests.filter(({ kind }) =>
      ["Deployment", "DaemonSet", "Job"].includes(kind),
    )) {
      // Without the account: it is not there in a dry run.
      const { serviceAccountName: _, ...pod } = spec.template.spec as { serviceAccountName: string };
      const { code, stderr } = await outcome(
        [tool("kubectl"), "create", "--dry-run=server", "-n", walled, "-f", "-"],
        {
          env: { KUBECONFIG: cluster.kubeconfig },
          input: JSON.stringify({
            apiVersion: "v1",
            kind: "Pod",
            metadata: { name: kind.toLowerCase() },
            spec: {
              restartPolicy: "Never",
              ...pod,
              ...(kind === "DaemonSet" ? { restartPolicy: "Always" } : {}),
            },
          }),
        },
      );
      said[kind] = code === 0 ? "" : stderr;
    }
    expect(said).toEqual({ Deployment: "", Job: "", DaemonSet: expect.any(String) as string });
    const needs = said.DaemonSet?.match(/violates PodSecurity "restricted:latest": (.*)$/m)?.[1] ?? "";
    expect(needs).toMatch(/host namespaces \(hostPID=true\)/);
    expect(needs).toMatch(/privileged \(container "installer"/);
    expect(needs).toMatch(/hostPath volumes? \(volume "host"\)|restricted volume types \(volume "host"/);
    expect(needs).not.toContain("reporter");
  });

  test("prints how many of a node's profiles are Ready", async () => {
    const [head = "", ...rows] = (await cluster.kubectl(["get", "noderuntimes"])).trim().split("\n");
    expect(head.split(/\s+/)).toEqual(["NAME", "ENGINE", "VERSION", "FRONTED", "READY", "REPORTED", "AGE"]);
    expect(rows.map((row) => row.split(/\s+/).slice(0, 2))).toEqual([
      ["node-1", "containerd"],
      ["node-2", "containerd"],
    ]);
    for (const row of rows) expect(row.split(/\s+/)[4]).toBe("2/2");
  });

  test("has an agent on each node that says by its Lease that it lives, and not by its status", async () => {
    const path = ["get", "noderuntime/node-1", "-o", "jsonpath={.metadata.uid} {.status.heartbeat}"];
    const [uid, reported] = (await cluster.kubectl(path)).split(" ");
    const lease = async (node: string) =>
      JSON.parse(await cluster.kubectl(["get", "lease", node, "-n", namespace, "-o", "json"])) as {
        metadata: { ownerReferences: object[] };
        spec: { renewTime: string };
      };
    const first = await lease("node-1");
    expect(first.metadata.ownerReferences).toMatchObject([{ kind: "NodeRuntime", name: "node-1", uid }]);
    await until(AbortSignal.timeout(90_000), 90_000, "a Lease that is renewed", async () => {
      const { renewTime } = (await lease("node-2")).spec;
      return (
        renewTime > first.spec.renewTime && (await lease("node-1")).spec.renewTime > first.spec.renewTime
      );
    });
    const { renewTime } = (await lease("node-1")).spec;
    expect(Date.parse(renewTime)).toBeGreaterThan(Date.parse(reported ?? ""));
  }, 120_000);
});

describe("The operator's Lease", () => {
  const holder = async () => {
    const text = await cluster.kubectl([
      ...["get", "lease", "bulkhead-operator", "-n", namespace, "-o", "jsonpath={.spec.holderIdentity}"],
    ]);
    return text;
  };
  const heldByAnother = async (than: string, seconds: number) => {
    const begun = performance.now();
    await until(AbortSignal.timeout(seconds * 1000), seconds * 1000, "another leader", async () => {
      const now = await holder();
      return now !== "" && now !== than;
    });
    return (performance.now() - begun) / 1000;
  };

  test("names its pod", async () => {
    const [pod] = await podsOf(cluster, "operator");
    expect(await holder()).toMatch(new RegExp(`^${pod?.metadata.name}_[0-9a-f-]{36}$`));
  });

  test("is given up on SIGTERM, so that the next operator leads before it would have run out", async () => {
    const [pod] = await podsOf(cluster, "operator");
    const before = await holder();
    await cluster.kubectl(["delete", "pod", "-n", namespace, pod?.metadata.name ?? "", "--wait=false"]);
    expect(await heldByAnother(before, 14)).toBeLessThan(10);
  });

  test("is taken at once from a leader that was killed and whose rights went before it could give the lease up", async () => {
    const before = await holder();
    const [pod] = await podsOf(cluster, "operator");
    // As `helm uninstall` does: rights and pod go together, the Lease stays.
    await cluster.kubectl(["scale", "deployment", "bulkhead-operator", "-n", namespace, "--replicas=0"]);
    const binding = await cluster.kubectl([
      "get",
      "rolebinding",
      "bulkhead-operator",
      "-n",
      namespace,
      "-o",
      "json",
    ]);
    await cluster.kubectl(["delete", "rolebinding", "bulkhead-operator", "-n", namespace]);
    try {
      await cluster.kubectl([
        "delete",
        "pod",
        "-n",
        namespace,
        pod?.metadata.name ?? "",
        "--now",
        "--ignore-not-found",
      ]);
    } finally {
      const { metadata, ...rest } = JSON.parse(binding) as { metadata: Record<string, unknown> };
      const { uid: _u, resourceVersion: _r, creationTimestamp: _c, ...kept } = metadata;
      // By Helm's own name: fields that another manager owns would be in the way of the next upgrade.
      const asHelm = ["apply", "--server-side", "--field-manager=helm", "-f", "-"];
      await cluster.kubectl(asHelm, { input: JSON.stringify({ metadata: kept, ...rest }) });
      await cluster.kubectl(["scale", "deployment", "bulkhead-operator", "-n", namespace, "--replicas=1"]);
    }
    expect(await heldByAnother(before, 14)).toBeLessThan(12);
    await cluster.kubectl([
      "rollout",
      "status",
      "deployment/bulkhead-operator",
      "-n",
      namespace,
      "--timeout=30s",
    ]);
  });
});
