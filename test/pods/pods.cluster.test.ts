import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bulkheadCluster } from "../cluster/bulkhead.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { outcome } from "../tools/run.ts";
import { first, inNamespace, type Namespace, podOf, ready } from "./kube.ts";

/** What a pod may expect of Kubernetes, through kubectl, under each wall (issue 3, "What must hold", 1). */

let cluster: Cluster;
let image: string;
beforeAll(async () => {
  cluster = await bulkheadCluster();
  image = `${cluster.registry}/bulkhead/test:1`;
});

describe.each(["standard", "sandboxed"])("Under %s", (wall) => {
  let ns: Namespace;
  let dir: string;
  const gvisor = wall === "sandboxed";
  const pod = (name: string, container = {}, spec = {}) => podOf(name, wall, image, container, spec);
  /** kubectl under script(1), which gives it a terminal of the size that `before` sets. */
  const onTerminal = (before: string, args: string) =>
    outcome(["script", "-qec", `${before}; kubectl -n ${ns.namespace} ${args}`, "/dev/null"], {
      env: { KUBECONFIG: cluster.kubeconfig },
    });

  beforeAll(async () => {
    ns = inNamespace(cluster, `pods-${wall}`);
    await ns.create();
    dir = await mkdtemp(join(tmpdir(), "bh-pods-"));
    await ns.run(pod("plain", { stdin: true, command: ["sh", "-c", "httpd -p 8080 -h /etc; sleep 3600"] }));
  });
  afterAll(async () => {
    await ns.destroy();
    await rm(dir, { recursive: true, force: true });
  });

  test("a pod sees the kernel that its wall promises", async () => {
    const host = (await readFile("/proc/sys/kernel/osrelease", "utf8")).trim();
    const seen = (await ns.exec("plain", "uname", "-r")).trim();
    if (gvisor) expect(seen).not.toBe(host);
    else expect(seen).toBe(host);
  });

  test("init containers run first, in order, and share volumes with the containers", async () => {
    const mount = { volumeMounts: [{ name: "v", mountPath: "/v" }] };
    const init = (name: string) => ({
      name,
      image,
      command: ["sh", "-c", `echo ${name} >> /v/order`],
      ...mount,
    });
    await ns.run(
      pod("init", mount, {
        initContainers: [init("one"), init("two")],
        volumes: [{ name: "v", emptyDir: {} }],
      }),
    );
    expect(await ns.exec("init", "cat", "/v/order")).toBe("one\ntwo\n");
  });

  test("an init container that fails holds the pod back with its reason", async () => {
    await ns.apply(
      pod("init-fails", {}, { initContainers: [{ name: "bad", image, command: ["sh", "-c", "exit 3"] }] }),
    );
    const failed = await ns.until("init-fails", ({ status }) => status.phase === "Failed");
    expect(failed.status.initContainerStatuses?.[0]?.state.terminated).toMatchObject({
      exitCode: 3,
      reason: "Error",
    });
  });

  test("containers of a pod share its network", async () => {
    await ns.run(
      pod(
        "two",
        {},
        {
          containers: [
            { name: "main", image, command: ["sleep", "3600"] },
            { name: "web", image, command: ["httpd", "-f", "-p", "8081", "-h", "/etc"] },
          ],
        },
      ),
    );
    expect(
      await ns.kubectl(["exec", "two", "-c", "main", "--", "wget", "-qO-", "http://127.0.0.1:8081/passwd"]),
    ).toContain("root");
  });

  test("shareProcessNamespace shows the containers each other's processes; without it they do not", async () => {
    const containers = [
      { name: "main", image, command: ["sleep", "3600"] },
      { name: "other", image, command: ["sleep", "7777"] },
    ];
    await ns.run(pod("pids", {}, { containers, shareProcessNamespace: true }));
    expect(await ns.kubectl(["exec", "pids", "-c", "main", "--", "ps"])).toContain("sleep 7777");
    expect(await ns.kubectl(["exec", "two", "-c", "main", "--", "ps"])).not.toContain("httpd");
  });

  test("exec passes stdin, output and the exit code", async () => {
    const argv = [
      "kubectl",
      "-n",
      ns.namespace,
      "exec",
      "-i",
      "plain",
      "--",
      "sh",
      "-c",
      "cat; echo err >&2; exit 7",
    ];
    const result = await outcome(argv, { env: { KUBECONFIG: cluster.kubeconfig }, input: "over the wall" });
    expect(result).toMatchObject({ code: 7, stdout: "over the wall" });
    expect(result.stderr).toContain("err");
  });

  test("exec with a terminal has the client's window size", async () => {
    const { stdout } = await onTerminal(
      "stty rows 40 cols 120",
      "exec -it plain -- sh -c 'sleep 1; stty size; tty'",
    );
    expect(stdout).toContain("40 120");
    expect(stdout).toContain("/dev/pts/");
  });

  test("attach reaches the container's own stdin and output", async () => {
    await ns.run(
      pod("attach", { stdin: true, command: ["sh", "-c", "while read line; do echo got $line; done"] }),
    );
    const child = spawn("kubectl", ["-n", ns.namespace, "attach", "-i", "attach"], {
      env: { ...process.env, KUBECONFIG: cluster.kubeconfig },
    });
    let seen = "";
    child.stdout.on("data", (chunk) => {
      seen += chunk;
    });
    await new Promise((resolve) => setTimeout(resolve, 1500));
    child.stdin.write("hello\n");
    await expect.poll(() => seen, { timeout: 15_000 }).toContain("got hello");
    child.kill();
    expect(await ns.kubectl(["logs", "attach"])).toContain("got hello");
  });

  test("logs -f follows across a rotation and loses no line", async () => {
    // Nodes rotate at 100 KiB (see the test cluster's kubelet settings): 3000 lines are three files.
    const script =
      'i=0; while [ $i -lt 3000 ]; do echo "line $i ................................................................"; i=$((i+1)); [ $((i % 100)) = 0 ] && sleep 0.3; done; sleep 3600';
    await ns.run(pod("logs", { command: ["sh", "-c", script] }));
    const child = spawn("kubectl", ["-n", ns.namespace, "logs", "-f", "logs"], {
      env: { ...process.env, KUBECONFIG: cluster.kubeconfig },
    });
    let seen = "";
    child.stdout.on("data", (chunk) => {
      seen += chunk;
    });
    await expect.poll(() => seen.includes("line 2999"), { timeout: 90_000, interval: 500 }).toBe(true);
    child.kill();
    const numbers = [...seen.matchAll(/^line (\d+)/gm)].map(([, n]) => Number(n));
    expect(numbers).toEqual(Array.from({ length: 3000 }, (_, i) => i));
    const node = cluster.node((await ns.get("logs")).spec.nodeName);
    const files = await node.exec(["sh", "-c", `ls /var/log/pods/${ns.namespace}_logs_*/main | wc -l`]);
    expect(Number(files)).toBeGreaterThan(1);
  });

  test("port-forward carries a connection", async () => {
    const child: ChildProcess = spawn("kubectl", ["-n", ns.namespace, "port-forward", "plain", ":8080"], {
      env: { ...process.env, KUBECONFIG: cluster.kubeconfig },
    });
    try {
      let out = "";
      child.stdout?.on("data", (chunk) => {
        out += chunk;
      });
      await expect.poll(() => out, { timeout: 15_000 }).toMatch(/127\.0\.0\.1:\d+/);
      const port = /127\.0\.0\.1:(\d+)/.exec(out)?.[1];
      for (let i = 0; i < 3; i++) {
        const response = await fetch(`http://127.0.0.1:${port}/passwd`, {
          signal: AbortSignal.timeout(15_000),
        });
        expect(await response.text()).toContain("root");
      }
    } finally {
      child.kill();
      await once(child, "exit");
    }
  });

  test("cp copies a file in and out unchanged", async () => {
    const content = Buffer.from(Array.from({ length: 200_000 }, (_, i) => i % 251));
    await writeFile(join(dir, "in"), content);
    await ns.kubectl(["cp", join(dir, "in"), "plain:/tmp/copied"]);
    await ns.kubectl(["cp", "plain:/tmp/copied", join(dir, "out")]);
    expect((await readFile(join(dir, "out"))).equals(content)).toBe(true);
  });

  test("a failing liveness probe restarts the container; readiness and startup probes gate Ready", async () => {
    const exec = (script: string) => ({
      exec: { command: ["sh", "-c", script] },
      periodSeconds: 1,
      failureThreshold: 1,
    });
    await ns.apply(
      pod(
        "probes",
        {
          command: [
            "sh",
            "-c",
            "sleep 2; touch /tmp/started; sleep 2; touch /tmp/ready; sleep 6; rm /tmp/ready; sleep 3600",
          ],
          startupProbe: { ...exec("test -f /tmp/started"), failureThreshold: 30 },
          readinessProbe: exec("test -f /tmp/ready"),
          livenessProbe: { ...exec("test ! -f /tmp/started || test -f /tmp/ready"), failureThreshold: 5 },
        },
        { restartPolicy: "Always" },
      ),
    );
    await ns.until("probes", (p) => first(p)?.state.running !== undefined && !ready(p));
    await ns.until("probes", ready);
    await ns.until("probes", (p) => (first(p)?.restartCount ?? 0) >= 1, 60);
  });

  test("postStart and preStop run, and a container that ends in its grace period keeps its own exit code", async () => {
    const hostPath = `/tmp/bulkhead-test/${wall}-hooks`;
    const hook = (name: string) => ({ exec: { command: ["sh", "-c", `echo ${name} >> /host/hooks`] } });
    const p = await ns.run(
      pod(
        "hooks",
        {
          command: [
            "sh",
            "-c",
            "trap 'echo term >> /host/hooks; exit 5' TERM; while true; do sleep 0.2; done",
          ],
          lifecycle: { postStart: hook("postStart"), preStop: hook("preStop") },
          volumeMounts: [{ name: "h", mountPath: "/host" }],
        },
        {
          terminationGracePeriodSeconds: 20,
          volumes: [{ name: "h", hostPath: { path: hostPath, type: "DirectoryOrCreate" } }],
        },
      ),
    );
    const node = cluster.node(p.spec.nodeName);
    await ns.kubectl(["delete", "pod", "hooks"]);
    expect(await node.exec(["cat", `${hostPath}/hooks`])).toBe("postStart\npreStop\nterm\n");
    await node.exec(["rm", "-rf", hostPath]);
  });

  test("a container that ignores SIGTERM is killed after the grace period", async () => {
    await ns.run(pod("stubborn", { command: ["sh", "-c", "trap '' TERM; while true; do sleep 0.2; done"] }));
    const began = Date.now();
    await ns.kubectl(["delete", "pod", "stubborn", "--grace-period=3"]);
    expect(Date.now() - began).toBeGreaterThan(2500);
  });

  test.each([
    ["Completed", 0, "exit 0", "Succeeded"],
    ["Error", 42, "exit 42", "Failed"],
  ])("a container that ends is %s with exit code %i", async (reason, exitCode, script, phase) => {
    const name = `ends-${exitCode}`;
    await ns.apply(pod(name, { command: ["sh", "-c", script] }));
    const p = await ns.until(name, ({ status }) => status.phase === phase);
    expect(first(p)?.state.terminated).toMatchObject({ exitCode, reason });
  });

  test("restartPolicy OnFailure restarts after a failure and stops after success", async () => {
    const volume = { volumeMounts: [{ name: "v", mountPath: "/v" }] };
    await ns.apply(
      pod(
        "on-failure",
        { command: ["sh", "-c", "test -f /v/second || { touch /v/second; exit 9; }"], ...volume },
        {
          restartPolicy: "OnFailure",
          volumes: [{ name: "v", emptyDir: {} }],
        },
      ),
    );
    const p = await ns.until("on-failure", ({ status }) => status.phase === "Succeeded");
    expect(first(p)).toMatchObject({
      restartCount: 1,
      lastState: { terminated: { exitCode: 9, reason: "Error" } },
    });
  });

  test("a container beyond its memory limit is OOMKilled", async () => {
    await ns.apply(
      pod("oom", {
        // tail keeps what it reads while it looks for a line's end.
        command: ["sh", "-c", "tail /dev/zero"],
        resources: { limits: { memory: "48Mi", cpu: "500m" } },
      }),
    );
    const p = await ns.until("oom", ({ status }) => status.phase === "Failed", 90);
    expect(first(p)?.state.terminated).toMatchObject({ exitCode: 137, reason: "OOMKilled" });
  });

  test("cpu and memory limits stand in the pod's cgroup on the node", async () => {
    const p = await ns.run(pod("limits", { resources: { limits: { memory: "64Mi", cpu: "250m" } } }));
    const node = cluster.node(p.spec.nodeName);
    const limit = (controller: string, file: string) =>
      node.exec([
        "sh",
        "-c",
        `find /sys/fs/cgroup/${controller} -path '*pod${p.metadata.uid}*' -name ${file} | sort | head -1 | xargs cat`,
      ]);
    expect(Number(await limit("memory", "memory.limit_in_bytes"))).toBeLessThanOrEqual(200 * 1024 * 1024);
    expect(Number(await limit("cpu", "cpu.cfs_quota_us"))).toBeGreaterThan(0);
  });

  test("volumes: emptyDir on disk and in memory, configMap, secret, projected token, downward API, hostPath with subPath", async () => {
    await ns.kubectl(["create", "configmap", "conf", "--from-literal=key=from configmap"]);
    await ns.kubectl(["create", "secret", "generic", "secret", "--from-literal=key=from secret"]);
    const hostPath = `/tmp/bulkhead-test/${wall}-host`;
    const p = pod(
      "volumes",
      {
        env: [
          { name: "POD_NAME", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } },
          { name: "POD_IP", valueFrom: { fieldRef: { fieldPath: "status.podIP" } } },
        ],
        volumeMounts: [
          { name: "disk", mountPath: "/disk" },
          { name: "memory", mountPath: "/memory" },
          { name: "conf", mountPath: "/conf" },
          { name: "conf", mountPath: "/one-file", subPath: "key" },
          { name: "secret", mountPath: "/secret", readOnly: true },
          { name: "projected", mountPath: "/projected" },
          { name: "host", mountPath: "/host", subPath: "deep/below" },
        ],
      },
      {
        volumes: [
          { name: "disk", emptyDir: {} },
          { name: "memory", emptyDir: { medium: "Memory", sizeLimit: "16Mi" } },
          { name: "conf", configMap: { name: "conf" } },
          { name: "secret", secret: { secretName: "secret" } },
          {
            name: "projected",
            projected: {
              sources: [
                { serviceAccountToken: { path: "token", expirationSeconds: 3600 } },
                { downwardAPI: { items: [{ path: "labels", fieldRef: { fieldPath: "metadata.name" } }] } },
              ],
            },
          },
          { name: "host", hostPath: { path: hostPath, type: "DirectoryOrCreate" } },
        ],
      },
    );
    const { spec } = await ns.run(p);
    const out = await ns.sh(
      "volumes",
      "echo x > /disk/f; echo y > /memory/f; echo z > /host/f; grep ' /memory ' /proc/mounts; cat /conf/key /one-file /secret/key /projected/labels; echo; wc -c < /projected/token; echo $POD_NAME $POD_IP; echo no > /secret/key || echo read-only",
    );
    expect(out).toContain("tmpfs");
    expect(out).toContain("from configmapfrom configmapfrom secretvolumes");
    expect(out).toMatch(/volumes \d+\.\d+\.\d+\.\d+/);
    expect(out).toContain("read-only");
    const node = cluster.node(spec.nodeName);
    expect(await node.exec(["cat", `${hostPath}/deep/below/f`])).toBe("z\n");
    await node.exec(["rm", "-rf", hostPath]);
  });

  test("runAsUser, runAsGroup, fsGroup, supplemental groups and capabilities are what the pod says", async () => {
    await ns.run(
      pod(
        "user",
        {
          securityContext: {
            capabilities: { drop: ["ALL"], add: ["NET_BIND_SERVICE"] },
            allowPrivilegeEscalation: false,
          },
          volumeMounts: [{ name: "v", mountPath: "/v" }],
        },
        {
          securityContext: { runAsUser: 1234, runAsGroup: 2345, fsGroup: 3456, supplementalGroups: [4567] },
          volumes: [{ name: "v", emptyDir: {} }],
        },
      ),
    );
    const out = await ns.sh(
      "user",
      "id; touch /v/f && stat -c %g /v/f; grep -E 'CapBnd|NoNewPrivs' /proc/self/status",
    );
    expect(out).toContain("uid=1234");
    expect(out).toContain("gid=2345");
    expect(out).toContain("4567");
    expect(out).toContain("\n3456\n");
    expect(out).toMatch(/CapBnd:\s+0000000000000400/);
  });

  test("readOnlyRootFilesystem refuses writes outside volumes", async () => {
    await ns.run(pod("read-only", { securityContext: { readOnlyRootFilesystem: true } }));
    expect(await ns.sh("read-only", "touch /f 2>&1; true")).toContain("Read-only file system");
  });

  test("hostNetwork and hostPort reach the pod at the node's address", async () => {
    const web = (port: number) => ({ command: ["httpd", "-f", "-p", String(port), "-h", "/etc"] });
    const fetchFrom = async (name: string, port: number) => {
      const { status } = await ns.get(name);
      return ns.sh("plain", `wget -qO- -T 5 http://${status.hostIP}:${port}/hostname`);
    };
    if (!gvisor) {
      // gVisor's own network stack has no host network to offer: docs/gvisor.md.
      await ns.run(pod("host-network", web(18080), { hostNetwork: true }));
      expect(await fetchFrom("host-network", 18080)).not.toBe("");
    }
    await ns.run(pod("host-port", { ...web(8080), ports: [{ containerPort: 8080, hostPort: 18081 }] }));
    expect(await fetchFrom("host-port", 18081)).toContain("host-port");
  });

  test.runIf(!gvisor)(
    "seccomp RuntimeDefault filters, privileged does not and sees the host's devices",
    async () => {
      await ns.run(pod("seccomp", { securityContext: { seccompProfile: { type: "RuntimeDefault" } } }));
      expect(await ns.sh("seccomp", "grep Seccomp: /proc/self/status")).toMatch(/Seccomp:\s+2/);
      await ns.run(pod("privileged", { securityContext: { privileged: true } }));
      const out = await ns.sh(
        "privileged",
        "grep Seccomp: /proc/self/status; mount -t tmpfs x /mnt && echo mounted; ls /dev | wc -l",
      );
      expect(out).toMatch(/Seccomp:\s+0/);
      expect(out).toContain("mounted");
    },
  );

  test.runIf(!gvisor)(
    "mount propagation: what the host mounts later shows with HostToContainer",
    async () => {
      const path = `/run/bulkhead-test-${wall}`;
      const node = cluster.nodes[0];
      await node?.exec([
        "sh",
        "-c",
        `mkdir -p ${path}/sub && mount --bind ${path} ${path} && mount --make-shared ${path}`,
      ]);
      try {
        await ns.run(
          pod(
            "propagation",
            { volumeMounts: [{ name: "h", mountPath: "/h", mountPropagation: "HostToContainer" }] },
            {
              nodeName: node?.name,
              volumes: [{ name: "h", hostPath: { path } }],
            },
          ),
        );
        await node?.exec(["sh", "-c", `mount -t tmpfs x ${path}/sub && touch ${path}/sub/later`]);
        expect(await ns.exec("propagation", "ls", "/h/sub")).toContain("later");
        await ns.remove("propagation");
      } finally {
        await node?.exec(["sh", "-c", `umount ${path}/sub; umount ${path}; rm -rf ${path}`]);
      }
    },
  );

  test.each<[string, { image?: string; command?: string[]; imagePullPolicy?: string }, RegExp, RegExp]>([
    [
      "an image that does not exist",
      { image: "REGISTRY/does/not-exist:1" },
      /ErrImagePull|ImagePullBackOff/,
      /not.found|does not exist|404/i,
    ],
    [
      "an image of a registry that is down",
      { image: "127.0.0.1:1/x:1" },
      /ErrImagePull|ImagePullBackOff|RegistryUnavailable/,
      /refused|unavailable/i,
    ],
    [
      "a command that does not exist",
      { command: ["/no/such/program"] },
      /StartError|RunContainerError|CrashLoopBackOff|ContainerCannotRun/,
      /no such file|not found|no such/i,
    ],
    [
      "imagePullPolicy Never without the image",
      { image: "REGISTRY/never/pulled:1", imagePullPolicy: "Never" },
      /ErrImageNeverPull/,
      /not present/,
    ],
  ])("%s ends in a waiting state that says what is wrong", async (title, container, reason, message) => {
    const name = `bad-${title
      .replaceAll(/[^a-z]+/gi, "-")
      .toLowerCase()
      .slice(0, 40)
      .replace(/-$/, "")}`;
    await ns.apply(
      pod(name, {
        ...container,
        ...(container.image && { image: container.image.replace("REGISTRY", cluster.registry) }),
      }),
    );
    const p = await ns.until(name, (each) => {
      const state = first(each)?.state;
      return reason.test(state?.waiting?.reason ?? state?.terminated?.reason ?? "");
    });
    const state = first(p)?.state;
    const text = `${state?.waiting?.message ?? ""} ${state?.terminated?.message ?? ""}`;
    const events = await ns.kubectl(["get", "events", "--field-selector", `involvedObject.name=${name}`]);
    expect(`${text}\n${events}`).toMatch(message);
  });
});
