import { paths } from "@bulkhead/lib/api/paths.ts";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { bulkheadCluster, profileReady, profiles } from "../cluster/bulkhead.ts";
import { type Cluster, type Node, until } from "../cluster/cluster.ts";
import { first, inNamespace, type Namespace, type Pod, podOf } from "../pods/kube.ts";
import { eventsOf, nodeRuntime } from "./agent.ts";

/**
 * The switch of the kubelet on a real node: one that fails and is put back, and each place where the endpoint may
 * stand besides the configuration file. Profiles select node-1 alone between the tests, so that node-2 is what it
 * was and can be given another kubelet.
 */

const former = "unix:///run/containerd/containerd.sock";
const config = "/etc/kubernetes/kubelet.yaml";
const unit = "/etc/systemd/system/kubelet.service";
const dropin = "/etc/systemd/system/kubelet.service.d/test.conf";

let cluster: Cluster;
let node: Node;
let ns: Namespace;
let bystander: Pod;
let original: { config: string; unit: string };

const limit = (seconds: number) => [AbortSignal.timeout(seconds * 1000), seconds * 1000] as const;
const select = (labels: Record<string, string> | null) =>
  Promise.all(
    profiles.map((name) =>
      cluster.kubectl([
        ...["patch", "runtimeprofile", name, "--type=merge"],
        ...["-p", JSON.stringify({ spec: { nodeSelector: labels } })],
      ]),
    ),
  );
const leave = async () => {
  await select({ "bulkhead.dev/test": "one" });
  await until(...limit(60), "node-2 to be what it was", async () => {
    const there = await node.try(["test", "-e", paths.opt]);
    return there.code !== 0 && ((await nodeRuntime(cluster, node.name)).status?.profiles ?? []).length === 0;
  });
};
const join = async () => {
  await select(null);
  await until(...limit(90), "node-2 to serve both profiles", async () => {
    const { metadata, status } = await nodeRuntime(cluster, node.name);
    if (status?.ready === "2/2" && status.observedGeneration === metadata.generation) return true;
    throw new Error(JSON.stringify(status?.profiles?.map(({ phase, message }) => `${phase}: ${message}`)));
  });
};
const write = (path: string, text: string) =>
  node.exec(["sh", "-c", `mkdir -p "$(dirname "$1")" && cat >"$1"`, "sh", path], { input: text });
const restartKubelet = async () => {
  await node.exec(["sh", "-c", "systemctl daemon-reload && systemctl restart kubelet.service"]);
  await node.ready();
};
/** Content, mode, owner and time of files: what "as it was" means. */
const stateOf = (...files: string[]) =>
  node.exec(["sh", "-c", `sha256sum "$@" && stat -c '%n %a %u %g %s %Y' "$@"`, "sh", ...files]);
const commandLine = async () =>
  (
    await node.exec(["sh", "-c", "tr '\\0' ' ' </proc/$(systemctl show -P MainPID kubelet.service)/cmdline"])
  ).trim();
const healthz = () => cluster.kubectl(["get", "--raw", `/api/v1/nodes/${node.name}/proxy/healthz`]);

beforeAll(async () => {
  cluster = await bulkheadCluster();
  node = cluster.node("node-2");
  ns = inNamespace(cluster, "kubelet");
  await ns.create();
  await leave();
  original = { config: await node.exec(["cat", config]), unit: await node.exec(["cat", unit]) };
  const image = `${cluster.registry}/bulkhead/test:1`;
  bystander = await ns.run(podOf("bystander", undefined, image, {}, { nodeName: node.name }));
});
afterAll(async () => {
  await ns?.destroy();
  await node?.exec(["rm", "-rf", dropin]);
  await leave();
  await write(config, original.config);
  await write(unit, original.unit);
  await restartKubelet();
  await join();
  await Promise.all(profiles.map((name) => profileReady(cluster, name)));
});

const undisturbed = async () => {
  const now = await ns.until("bystander", (seen) => first(seen)?.ready === true);
  // The kubelet writes the name of the runtime that it talks to before the id.
  const id = (pod: Pod) => first(pod)?.containerID.replace(/^\w+:\/\//, "");
  expect(id(now)).toBe(id(bystander));
  expect(first(now)?.restartCount).toBe(0);
};

describe("A kubelet that does not come up on Bulkhead's socket", () => {
  test("gets its own setting back byte for byte, and the node says why", async () => {
    // A kubelet that starts and ends again and again, as one does that cannot reach its runtime.
    const command = original.unit.replaceAll("\\\n", " ").match(/^ExecStart=(.*)$/m)?.[1] ?? "";
    const script = `if grep -q bulkhead ${config}; then echo no such runtime here >&2; sleep 0.3; exit 1; fi; exec ${command}`;
    await write(dropin, `[Service]\nExecStart=\nExecStart=/bin/sh -c '${script}'\n`);
    await restartKubelet();
    const before = await stateOf(config, unit, dropin);
    const since = Date.now() - 1000;

    await select(null);
    await until(...limit(90), "the failed switch to be told", async () => {
      const { status } = await nodeRuntime(cluster, node.name);
      const failed = status?.profiles?.filter(({ phase }) => phase === "Failed") ?? [];
      return failed.length === profiles.length;
    });
    const { status } = await nodeRuntime(cluster, node.name);
    const condition = status?.conditions?.find(({ type }) => type === "RolledBack");
    expect(condition).toMatchObject({ status: "True", reason: "KubeletSwitchFailed" });
    expect(condition?.message).toMatch(/kubelet\.service.*ends again and again.*no such runtime here/s);
    expect(status?.conditions?.find(({ type }) => type === "Fronting")?.status).toBe("False");
    for (const profile of status?.profiles ?? []) {
      expect(profile).toMatchObject({ phase: "Failed", reason: "KubeletSwitchFailed", revision: "" });
      expect(profile.message).toContain("no such runtime here");
    }

    expect(await stateOf(config, unit, dropin)).toBe(before);
    expect(await healthz()).toBe("ok");
    expect(await node.exec(["systemctl", "is-active", "kubelet.service"])).toBe("active\n");
    await node.ready();
    await undisturbed();
    const image = `${cluster.registry}/bulkhead/test:1`;
    await ns.run(podOf("after", undefined, image, {}, { nodeName: node.name }));

    await until(...limit(20), "the Events", async () => {
      const reasons = (await eventsOf(cluster, node.name))
        .filter(({ at }) => at >= since)
        .map(({ reason }) => reason);
      return reasons.includes("RolledBack") && reasons.includes("KubeletSwitchFailed");
    });
    for (const name of profiles) {
      await until(...limit(20), `profile ${name} to be Degraded because of node-2`, async () => {
        const text = await cluster.kubectl([
          ...["get", "runtimeprofile", name, "-o"],
          `jsonpath={.status.conditions[?(@.type=="Degraded")].status} {.status.failedNodes}`,
        ]);
        if (/^True .*node-2.*KubeletSwitchFailed|^True .*KubeletSwitchFailed.*node-2/.test(text)) return true;
        throw new Error(text);
      });
    }
  });

  test("is not tried again at once: it has a node to serve", async () => {
    const pid = await node.exec(["systemctl", "show", "-P", "MainPID", "kubelet.service"]);
    await new Promise((resolve) => setTimeout(resolve, 15_000));
    expect(await node.exec(["systemctl", "show", "-P", "MainPID", "kubelet.service"])).toBe(pid);
  });

  test("leaves a node that is what it was when the profiles go", async () => {
    await leave();
    expect((await node.try(["test", "-e", "/etc/bulkhead"])).code).not.toBe(0);
    await node.exec(["rm", "-r", "/etc/systemd/system/kubelet.service.d"]);
    await restartKubelet();
  });
});

describe("The kubelet's endpoint is found, changed and put back byte for byte", () => {
  beforeEach(leave);

  test("in a flag of kubeadm-flags.env", async () => {
    const flags = "/var/lib/kubelet/kubeadm-flags.env";
    await write(flags, `KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=${former} --v=1"\n`);
    await write(
      unit,
      original.unit
        .replace("[Service]\n", `[Service]\nEnvironmentFile=-${flags}\n`)
        .replace("--hostname-override", "$KUBELET_KUBEADM_ARGS --hostname-override"),
    );
    await write(config, original.config.replace(/^containerRuntimeEndpoint:.*\n/m, ""));
    await restartKubelet();
    const before = await stateOf(flags, unit, config);

    await join();
    expect(await node.exec(["cat", flags])).toBe(
      `KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix://${paths.socket} --v=1"\n`,
    );
    expect(await commandLine()).toContain(`--container-runtime-endpoint=unix://${paths.socket} --v=1`);
    expect(await healthz()).toBe("ok");
    await undisturbed();

    await leave();
    expect(await stateOf(flags, unit, config)).toBe(before);
    expect(await commandLine()).toContain(`--container-runtime-endpoint=${former} --v=1`);
    await undisturbed();
    await node.exec(["rm", flags]);
  });

  test("in a drop-in directory, by a file of our own that is read last", async () => {
    const directory = "/etc/kubernetes/kubelet.conf.d";
    const theirs = `${directory}/20-engine.conf`;
    const head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    await write(theirs, `${head}containerRuntimeEndpoint: ${former}\n`);
    await write(unit, original.unit.replace("--config=", `--config-dir=${directory} --config=`));
    await write(config, original.config.replace(/^containerRuntimeEndpoint:.*\n/m, ""));
    await restartKubelet();
    const before = await stateOf(theirs, unit, config);

    await join();
    expect(await node.exec(["ls", directory])).toBe("20-engine.conf\n99-bulkhead.conf\n");
    expect(await node.exec(["cat", `${directory}/99-bulkhead.conf`])).toContain(`unix://${paths.socket}`);
    expect(await stateOf(theirs, unit, config)).toBe(before);
    await undisturbed();

    await leave();
    expect(await node.exec(["ls", directory])).toBe("20-engine.conf\n");
    expect(await stateOf(theirs, unit, config)).toBe(before);
    await undisturbed();
    await node.exec(["rm", "-r", directory]);
  });
});
