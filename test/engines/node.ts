import { randomUUID } from "node:crypto";
import { copyFile, cp, mkdir, readdir, rm, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { dirname, join } from "node:path";
import type { Desired, Report } from "../../node-agent/src/protocol.ts";
import { makeCertificates } from "../cluster/certificates.ts";
import { until } from "../cluster/cluster.ts";
import { registryConfig } from "../cluster/control-plane.ts";
import { removeCgroups, unmountBelow } from "../cluster/mounts.ts";
import { makeBridge, removeBridge } from "../cluster/network.ts";
import { bootNode, execOnNode, haltNode } from "../cluster/node.ts";
import { planCluster, registryHost, slots } from "../cluster/plan.ts";
import { clusterProcesses, endProcesses, startDaemon } from "../cluster/process.ts";
import { pushImages } from "../cluster/push-images.ts";
import { readSysctls, writeSysctls } from "../cluster/sysctls.ts";
import { ensureTestImages } from "../images/build.ts";
import { inCache } from "../tools/cache.ts";
import { debianProgram, debianPrograms } from "../tools/debian.ts";
import { chosenVersions } from "../tools/kubernetes.ts";
import { type Outcome, type RunOptions, run } from "../tools/run.ts";
import { startApi } from "./api.ts";

/**
 * A systemd host with an engine and a kubelet of its own, without a cluster: the kubelet stands alone and runs static
 * pods. The agent's installer runs on it, from the agent's image, and is told what is wanted as the reporter would.
 */
export type EngineNode = AsyncDisposable & {
  /** Host and port of the registry with the test images. */
  registry: string;
  /** Its root file system as this machine sees it: without what is mounted on the node. */
  root: string;
  exec(argv: readonly string[]): Promise<string>;
  try(argv: readonly string[]): Promise<Outcome>;
  /** Starts the installer, or starts it again. */
  startInstaller(): Promise<void>;
  want(profiles: Desired["profiles"]): Promise<void>;
  report(): Promise<Report>;
  /** Whether the agent is through with what it was told last, whatever came of it: nothing is half done then. */
  through({ status }: Report): boolean;
  /** Of a node with an API server. */
  kubectl(argv: readonly string[], options?: RunOptions): Promise<string>;
};

export type EngineNodeOptions = {
  /** Names it in every path and process; one of its own for each test file. */
  name: string;
  /** Unpacked over the root file system: Debian packages with a path that each has. */
  debs?: readonly (readonly [pkg: string, path: string])[];
  /** The same as directories of this machine. */
  trees?: readonly string[];
  /** Files by path, over those of an ordinary node. */
  files: (registry: string) => Record<string, string>;
  /** Programs of this machine by their path on the node. */
  programs?: Readonly<Record<string, string>>;
  /** The kubelet's CRI socket, where it is not containerd's. */
  socket?: string;
  /** An API server, so that pods may have a RuntimeClass. */
  api?: boolean;
  /** Fields of the kubelet's configuration. */
  kubelet?: object;
};

/** Runs a kubelet, alone where there is no API server. */
const kubeletUnit = (name: string, api: boolean): string => `[Unit]
Description=kubelet: the Kubernetes node agent
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/local/bin/kubelet --config=/etc/kubernetes/kubelet.yaml --hostname-override=${name}${api ? " --kubeconfig=/etc/kubernetes/kubelet.conf" : ""}
KillMode=process
Restart=always
RestartSec=1
`;

/** A static pod that writes a number twenty times a second. */
const counter = (registry: string): string =>
  JSON.stringify({
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: "counter", namespace: "default" },
    spec: {
      terminationGracePeriodSeconds: 1,
      containers: [
        {
          name: "main",
          image: `${registry}/bulkhead/test:1`,
          command: ["sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"],
        },
      ],
    },
  });

export async function startEngineNode(options: EngineNodeOptions): Promise<EngineNode> {
  const { name } = options;
  const signal = new AbortController().signal;
  const plan = planCluster(
    {
      name,
      kubernetes: chosenVersions(),
      nodes: [
        {
          name: "node-1",
          engine: "containerd",
          kubelet: {
            authentication: { anonymous: { enabled: true }, webhook: { enabled: false } },
            authorization: { mode: "AlwaysAllow" },
            ...(options.socket === undefined ? {} : { containerRuntimeEndpoint: `unix://${options.socket}` }),
            ...options.kubelet,
          },
        },
      ],
    },
    // Clusters take theirs from the other end.
    slots - 1,
    { run: `/run/${name}`, disk: `/var/lib/${name}` },
  );
  const node = plan.nodes[0]!;
  const sysctls = await readSysctls();
  const remove = async (): Promise<void> => {
    await haltNode(plan, node);
    await endProcesses(await clusterProcesses(name), 0);
    await removeBridge(plan);
    await unmountBelow(plan.run);
    await removeCgroups(plan.cgroup);
    for (const directory of [plan.run, plan.disk]) await rm(directory, { recursive: true, force: true });
  };
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    await remove();
    await writeSysctls(sysctls);
  });
  // A run that was killed leaves all of it.
  await remove();
  const upper = `${node.disk}/upper`;
  await mkdir(upper, { recursive: true });
  await mkdir(`${plan.disk}/logs`, { recursive: true });
  await makeCertificates(plan, signal);
  await makeBridge(plan, signal);

  const { pkg, path } = debianPrograms["docker-registry"];
  const config = `${plan.disk}/registry.yml`;
  await mkdir(inCache("registry"), { recursive: true });
  await writeFile(config, registryConfig(plan, inCache("registry")));
  await startDaemon(name, {
    component: "registry",
    argv: [await debianProgram(pkg, path), "serve", config],
    log: `${plan.disk}/logs/registry.log`,
  });
  const registry = registryHost(plan);
  await until(signal, 20_000, "the registry", async () => (await fetch(`http://${registry}/v2/`)).ok);
  const kubectl = options.api === true ? startApi(plan, signal) : Promise.resolve(withoutApi);
  // Whoever waits for it tells.
  kubectl.catch(() => {});
  await ensureTestImages(registry, ["pause:latest", "bulkhead/test:1"]);
  await agentImage(registry, await pushImages(registry), upper);

  const trees = [...(options.trees ?? [])];
  for (const [deb, file] of options.debs ?? [])
    trees.push((await debianProgram(deb, file)).slice(0, -file.length));
  for (const tree of trees) {
    for (const top of await readdir(tree)) {
      // /bin and its like are links into /usr on the node.
      const to = /^(bin|sbin|lib)$/.test(top) ? join(upper, "usr", top) : join(upper, top);
      await cp(join(tree, top), to, { recursive: true, verbatimSymlinks: true });
    }
  }
  const files: Record<string, string> = {
    "/etc/systemd/system/kubelet.service": kubeletUnit(node.name, options.api === true),
    "/etc/kubernetes/manifests/counter.json": counter(registry),
    ...options.files(registry),
  };
  for (const [to, text] of Object.entries(files)) {
    await mkdir(dirname(join(upper, to)), { recursive: true });
    await writeFile(join(upper, to), text);
  }
  for (const [to, from] of Object.entries(options.programs ?? {})) {
    await mkdir(dirname(join(upper, to)), { recursive: true });
    await copyFile(from, join(upper, to));
  }
  // The image's own Node finds its libraries where the image has them; this one lacks a single one on a node.
  await copyFile(process.execPath, join(upper, "app/node"));
  const library = "libatomic.so.1";
  await mkdir(join(upper, "usr/lib/x86_64-linux-gnu"), { recursive: true });
  await copyFile(join(upper, "bundle/lib", library), join(upper, "usr/lib/x86_64-linux-gnu", library));
  await bootNode(plan, node, signal);

  const tryExec: EngineNode["try"] = (argv) => execOnNode(plan, node, argv);
  const exec: EngineNode["exec"] = async (argv) => {
    const { code, stdout, stderr } = await tryExec(argv);
    if (code === 0) return stdout;
    throw new Error(`Cannot run "${argv.join(" ")}": exit code ${code}\n${stderr.trim() || stdout.trim()}`);
  };
  await until(signal, 60_000, "systemd", async () =>
    /^(running|degraded|starting)/.test((await tryExec(["systemctl", "is-system-running"])).stdout),
  );
  const socket = "/var/installer.sock";
  const call = async (method: string, url: string, body = ""): Promise<string> => {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    request(
      {
        socketPath: join(node.run, "rootfs", socket),
        path: url,
        method,
        headers: { "content-type": "application/json" },
        timeout: 25_000,
      },
      (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (chunk: string) => {
          text += chunk;
        });
        response.on("end", () =>
          (response.statusCode ?? 500) < 300
            ? resolve(text)
            : reject(new Error(`${response.statusCode}: ${text}`)),
        );
      },
    )
      .on("error", reject)
      .end(body);
    return promise;
  };
  let generation = 0;
  const kube = await kubectl;
  const moved = undo.move();
  return {
    registry,
    root: join(node.run, "rootfs"),
    exec,
    try: tryExec,
    startInstaller: async () => {
      await tryExec(["systemctl", "kill", "--signal=KILL", "installer"]);
      await tryExec(["systemctl", "reset-failed", "installer"]);
      const program = ["/app/node", "/app/installer.mjs"];
      const paths = ["--host=/", "--bundle=/bundle", "--busybox=/app/busybox", `--socket=${socket}`];
      await until(signal, 10_000, "the installer to start", async () => {
        await exec(["systemd-run", "--unit=installer", "--collect", ...program, ...paths]);
        return true;
      });
      await until(
        signal,
        20_000,
        "the installer to answer",
        async () => (await call("GET", "/v1/report")) !== "",
      );
    },
    want: async (profiles) => {
      generation++;
      await call("POST", "/v1/desired", JSON.stringify({ generation, profiles }));
    },
    kubectl: kube,
    through: ({ status }) => status.observedGeneration === generation,
    report: async () => JSON.parse(await call("GET", `/v1/report?instance=${randomUUID()}`)) as Report,
    [Symbol.asyncDispose]: () => moved.disposeAsync(),
  };
}

const withoutApi = (): Promise<string> => Promise.reject(new Error("This node has no API server"));

/** What of the agent's image its container has, at the same paths on the node; busybox where it hides nothing. */
async function agentImage(registry: string, tag: string, upper: string): Promise<void> {
  const url = `http://${registry}/v2/bulkhead/node-agent`;
  const headers = { accept: "application/vnd.oci.image.manifest.v1+json" };
  const { layers } = (await (await fetch(`${url}/manifests/${tag}`, { headers })).json()) as {
    layers: { digest: string }[];
  };
  for (const { digest } of layers) {
    const blob = join(upper, "layer.tar.gz");
    await writeFile(blob, Buffer.from(await (await fetch(`${url}/blobs/${digest}`)).arrayBuffer()));
    const names = ["./bundle*", "./app*", "./bin/busybox"];
    await run([
      "tar",
      "-xzf",
      blob,
      "-C",
      upper,
      "--wildcards",
      "--transform=s,^./bin/busybox,./app/busybox,",
      ...names,
    ]).catch((error: unknown) => {
      // Not every layer has all of them.
      if (!/Not found in archive/.test(String(error))) throw error;
    });
    await rm(blob);
  }
}
