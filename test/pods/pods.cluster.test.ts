import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bulkheadCluster } from "../cluster/bulkhead.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { ensureTestImages } from "../images/build.ts";
import { outcome } from "../tools/run.ts";
import { first, inNamespace, type Namespace, podOf, ready } from "./kube.ts";

/**
 * What a pod may expect of Kubernetes, through kubectl, under each wall (issue 3, "What must hold", 1). Where gVisor by
 * its nature differs, the test says how; docs/gvisor.md lists it.
 */

let cluster: Cluster;
let image: string;
beforeAll(async () => {
  cluster = await bulkheadCluster();
  image = `${cluster.registry}/bulkhead/test:1`;
  await ensureTestImages(cluster.registry, ["bulkhead/no-command:1"]);
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

  test("exec with a terminal has the client's window size, and follows it", async () => {
    const { stdout } = await onTerminal(
      "stty rows 40 cols 120; (sleep 2; stty rows 50 cols 100 </dev/tty) & true",
      "exec -it plain -- sh -c 'sleep 1; stty size; tty; test -t 0 && echo is a terminal; sleep 2; stty size'",
    );
    expect(stdout).toMatch(/40 120[\s\S]*is a terminal[\s\S]*50 100/);
    // The terminal is the host's and has no name inside gVisor.
    expect(stdout).toContain(gvisor ? "not a tty" : "/dev/pts/");
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

  test("attach with a terminal shows what is typed, and its window size", async () => {
    await ns.run(
      pod("attach-tty", {
        stdin: true,
        tty: true,
        command: ["sh", "-c", "read line; echo got $line; stty size; sleep 3600"],
      }),
    );
    const child = spawn(
      "script",
      ["-qefc", `stty rows 33 cols 99; exec kubectl -n ${ns.namespace} attach -it attach-tty`, "/dev/null"],
      { env: { ...process.env, KUBECONFIG: cluster.kubeconfig } },
    );
    let seen = "";
    child.stdout.on("data", (chunk) => {
      seen += chunk;
    });
    await new Promise((resolve) => setTimeout(resolve, 1500));
    child.stdin.write("hello\r");
    await expect.poll(() => seen, { timeout: 15_000 }).toMatch(/got hello[\s\S]*33 99/);
    child.kill();
  });

  test("logs --previous are those of the container that was", async () => {
    await ns.apply(
      pod(
        "previous",
        {
          command: [
            ...["sh", "-c"],
            "test -f /v/second && { echo second; sleep 3600; }; touch /v/second; echo first; exit 1",
          ],
          volumeMounts: [{ name: "v", mountPath: "/v" }],
        },
        { restartPolicy: "Always", volumes: [{ name: "v", emptyDir: {} }] },
      ),
    );
    await ns.until("previous", (p) => first(p)?.restartCount === 1 && ready(p));
    expect(await ns.kubectl(["logs", "previous"])).toBe("second\n");
    expect(await ns.kubectl(["logs", "previous", "--previous"])).toBe("first\n");
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

  test("probes over HTTP and TCP meet the pod at its address", async () => {
    await ns.run(
      pod("net-probes", {
        command: ["httpd", "-f", "-p", "8080", "-h", "/etc"],
        readinessProbe: { httpGet: { path: "/hostname", port: 8080 }, periodSeconds: 1 },
        startupProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 },
        livenessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 },
      }),
    );
    await ns.apply(
      pod("net-probe-fails", { readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 } }),
    );
    await ns.until("net-probe-fails", (p) => first(p)?.state.running !== undefined);
    await expect
      .poll(() => ns.events("net-probe-fails"), { timeout: 15_000 })
      .toMatch(/Readiness probe failed.*refused/);
    expect(ready(await ns.get("net-probe-fails"))).toBe(false);
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
    expect(await ns.endOf("hooks")).toMatchObject({ exitCode: 5, reason: "Error" });
    expect(await node.exec(["cat", `${hostPath}/hooks`])).toBe("postStart\npreStop\nterm\n");
    await node.exec(["rm", "-rf", hostPath]);
  });

  test("a container that ignores SIGTERM is killed after the grace period", async () => {
    await ns.run(pod("stubborn", { command: ["sh", "-c", "trap '' TERM; while true; do sleep 0.2; done"] }));
    const began = Date.now();
    expect(await ns.endOf("stubborn", 3)).toMatchObject({ exitCode: 137, reason: "Error" });
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
        {
          command: ["sh", "-c", "test -f /v/second && sleep 3 && exit 0; touch /v/second; exit 9"],
          ...volume,
        },
        {
          restartPolicy: "OnFailure",
          volumes: [{ name: "v", emptyDir: {} }],
        },
      ),
    );
    // While it runs: a kubelet of 1.33 forgets the life before when the last one has ended.
    const again = await ns.until(
      "on-failure",
      (p) => first(p)?.state.running !== undefined && first(p)?.restartCount === 1,
    );
    expect(first(again)?.lastState).toMatchObject({ terminated: { exitCode: 9, reason: "Error" } });
    const p = await ns.until("on-failure", ({ status }) => status.phase === "Succeeded");
    expect(first(p)).toMatchObject({ restartCount: 1 });
  });

  test("restartPolicy Always restarts after success too, and backs off", async () => {
    await ns.apply(pod("always", { command: ["sh", "-c", "exit 0"] }, { restartPolicy: "Always" }));
    const p = await ns.until("always", (each) => first(each)?.state.waiting?.reason === "CrashLoopBackOff");
    expect(first(p)).toMatchObject({ lastState: { terminated: { exitCode: 0, reason: "Completed" } } });
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

  test("cpu and memory limits stand in the cgroups on the node", async () => {
    const p = await ns.run(pod("limits", { resources: { limits: { memory: "64Mi", cpu: "250m" } } }));
    const node = cluster.node(p.spec.nodeName);
    // The tree of one pod, outermost first.
    const limits = async (controller: string, file: string) =>
      (
        await node.exec([
          ...["sh", "-c"],
          `find /sys/fs/cgroup/${controller} -path '*pod${p.metadata.uid}*' -name ${file} -printf '%d %p\\n' | sort -n | cut -d' ' -f2 | xargs cat`,
        ])
      )
        .trim()
        .split("\n")
        .map(Number);
    const [memory, ...memories] = await limits("memory", "memory.limit_in_bytes");
    const [cpu, ...cpus] = await limits("cpu", "cpu.cfs_quota_us");
    // gVisor's containers share one sandbox: it is held by the pod's limits, which have the class's overhead in them.
    expect([memory, cpu]).toEqual(gvisor ? [128 << 20, 30_000] : [64 << 20, 25_000]);
    if (!gvisor) expect([memories, cpus]).toEqual([[64 << 20], [25_000]]);
    if (gvisor) expect(await ns.sh("limits", "free -m")).toMatch(/Mem:\s+128 /);
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
    const {
      spec,
      metadata: { uid },
    } = await ns.run(p);
    const out = await ns.sh(
      "volumes",
      "echo x > /disk/f; echo y > /memory/f; echo z > /host/f; df -k /memory; grep ' /memory ' /proc/mounts; cat /conf/key /one-file /secret/key /projected/labels; echo; wc -c < /projected/token; echo $POD_NAME $POD_IP; echo no > /secret/key || echo read-only",
    );
    expect(out).toMatch(/ 16384 .* \/memory\n/);
    // Of the node's file systems gVisor shows its gofer's protocol, whatever they are.
    expect(out).toMatch(gvisor ? / \/memory 9p / : / \/memory tmpfs /);
    expect(out).toContain("from configmapfrom configmapfrom secretvolumes");
    expect(out).toMatch(/volumes \d+\.\d+\.\d+\.\d+/);
    expect(out).toContain("read-only");
    const node = cluster.node(spec.nodeName);
    expect(await node.exec(["cat", `${hostPath}/deep/below/f`])).toBe("z\n");
    const onNode = `/var/lib/kubelet/pods/${uid}/volumes/kubernetes.io~empty-dir/memory`;
    expect(await node.exec(["sh", "-c", `stat -f -c %T ${onNode}; cat ${onNode}/f`])).toBe("tmpfs\ny\n");
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
    expect(out).toMatch(/NoNewPrivs:\s+1/);
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
    if (gvisor) {
      // Its network stack is its own: a pod without any network must not claim the node's address.
      await ns.apply(pod("host-network", web(18080), { hostNetwork: true }));
      await expect
        .poll(() => ns.events("host-network"), { timeout: 30_000 })
        .toMatch(/FailedCreatePodSandBox.*Cannot run the pod on the node's network.*drop hostNetwork/);
      await ns.remove("host-network");
    } else {
      await ns.run(pod("host-network", web(18080), { hostNetwork: true }));
      expect(await fetchFrom("host-network", 18080)).not.toBe("");
    }
    await ns.run(pod("host-port", { ...web(8080), ports: [{ containerPort: 8080, hostPort: 18081 }] }));
    expect(await fetchFrom("host-port", 18081)).toContain("host-port");
  });

  test("seccomp RuntimeDefault filters the host's system calls", async () => {
    await ns.run(pod("seccomp", { securityContext: { seccompProfile: { type: "RuntimeDefault" } } }));
    const p = await ns.get("seccomp");
    const out = await ns.sh("seccomp", "grep Seccomp: /proc/self/status");
    // Inside gVisor the profile filters what its kernel is asked for; what that asks the host for is filtered besides.
    expect(out).toMatch(/Seccomp:\s+2/);
    if (!gvisor) return;
    const node = cluster.node(p.spec.nodeName);
    const sandboxes = await node.exec([
      ...["sh", "-c"],
      'for p in /proc/[0-9]*; do [ "$(cat $p/comm 2>/dev/null)" = exe ] && grep Seccomp: $p/status; done; true',
    ]);
    expect(sandboxes).toMatch(/Seccomp:\s+2/);
  });

  test("a privileged container has all capabilities and mounts; the host's devices only under runc", async () => {
    const p = await ns.run(pod("privileged", { securityContext: { privileged: true } }));
    const out = await ns.sh(
      "privileged",
      "grep Seccomp: /proc/self/status; mount -t tmpfs x /home && echo mounted; ls /dev/kmsg; head -c 8 /dev/kmsg >/dev/null 2>&1 && echo read || echo refused",
    );
    expect(out).toMatch(/Seccomp:\s+0/);
    expect(out).toContain("mounted");
    expect(out).toContain("/dev/kmsg");
    // gVisor shows the nodes and has no driver behind them: ENXIO.
    expect(out).toContain(gvisor ? "refused" : "read");
    // What it mounted stays its own.
    expect(
      await cluster
        .node(p.spec.nodeName)
        .exec(["grep", "-c", "^x ", "/proc/mounts"])
        .catch(() => "0"),
    ).toMatch(/^0/);
  });

  test("mount propagation: HostToContainer shows what the host mounts later, Bidirectional goes both ways", async () => {
    const path = `/run/bulkhead-test-${wall}`;
    const node = cluster.nodes[0];
    const mounting = (name: string, mountPropagation: string) =>
      pod(
        name,
        {
          securityContext: { privileged: true },
          volumeMounts: [{ name: "h", mountPath: "/h", mountPropagation }],
        },
        { nodeName: node?.name, volumes: [{ name: "h", hostPath: { path } }] },
      );
    await node?.exec([
      ...["sh", "-c"],
      `mkdir -p ${path}/sub ${path}/up && mount --bind ${path} ${path} && mount --make-shared ${path}`,
    ]);
    try {
      await ns.run(mounting("to-container", "HostToContainer"));
      await node?.exec(["sh", "-c", `mount -t tmpfs x ${path}/sub && touch ${path}/sub/later`]);
      expect(await ns.exec("to-container", "ls", "/h/sub")).toBe("later\n");
      await ns.remove("to-container");
      if (gvisor) {
        // A mount made inside is gVisor's own and cannot reach the host.
        await ns.apply(mounting("both-ways", "Bidirectional"));
        const p = await ns.until("both-ways", (each) => first(each)?.state.waiting?.message !== undefined);
        expect(first(p)?.state.waiting).toMatchObject({
          reason: "CreateContainerError",
          message: expect.stringContaining("propagation"),
        });
      } else {
        await ns.run(mounting("both-ways", "Bidirectional"));
        await ns.sh("both-ways", "mount -t tmpfs x /h/up && touch /h/up/from-pod");
        expect(await node?.exec(["ls", `${path}/up`])).toBe("from-pod\n");
      }
      await ns.remove("both-ways");
    } finally {
      await node?.exec(["sh", "-c", `umount ${path}/up; umount ${path}/sub; umount ${path}; rm -rf ${path}`]);
    }
  });

  test("pods of two nodes reach each other, and the API server", async () => {
    const [one, two] = cluster.nodes;
    if (one === undefined || two === undefined) throw new Error("the test needs two nodes");
    const web = { command: ["httpd", "-f", "-p", "8080", "-h", "/etc"] };
    const [a, b] = await Promise.all([
      ns.run(pod("on-one", web, { nodeName: one.name })),
      ns.run(pod("on-two", web, { nodeName: two.name })),
    ]);
    const get = (from: string, to: string) => ns.sh(from, `wget -qO- -T 10 http://${to}:8080/hostname`);
    expect(await get("on-one", `${b.status.podIP}`)).toBe("on-two\n");
    expect(await get("on-two", `${a.status.podIP}`)).toBe("on-one\n");
    for (const name of ["on-one", "on-two"])
      expect(
        await ns.sh(
          name,
          "nc -w 10 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && echo there",
        ),
      ).toContain("there");
  });

  test("imagePullPolicy Always asks the registry each time, IfNotPresent does not", async () => {
    await ns.run(pod("pull-always", { imagePullPolicy: "Always" }));
    expect(await ns.events("pull-always")).toContain("Successfully pulled image");
    await ns.run(pod("pull-if", { imagePullPolicy: "IfNotPresent" }));
    expect(await ns.events("pull-if")).toContain("already present on machine");
  });

  test("a bad command ends a pod that shall not restart with StartError, and one that shall in RunContainerError", async () => {
    const bad = { command: ["/no/such/program"] };
    const reason = /\/no\/such\/program.*no such file or directory/;
    await ns.apply(pod("bad-never", bad));
    await ns.apply(pod("bad-always", bad, { restartPolicy: "Always" }));
    const never = await ns.until("bad-never", ({ status }) => status.phase === "Failed");
    expect(first(never)?.state.terminated).toMatchObject({ exitCode: 128, reason: "StartError" });
    expect(first(never)?.state.terminated?.message).toMatch(reason);
    const always = await ns.until("bad-always", (p) =>
      /RunContainerError|CrashLoopBackOff/.test(first(p)?.state.waiting?.reason ?? ""),
    );
    expect(
      `${first(always)?.state.waiting?.message} ${first(always)?.lastState.terminated?.message}`,
    ).toMatch(reason);
  });

  test("a mount that cannot be made ends in StartError that names the place", async () => {
    await ns.apply(
      pod(
        "bad-mount",
        { volumeMounts: [{ name: "v", mountPath: "/etc/passwd/below" }] },
        { volumes: [{ name: "v", emptyDir: {} }] },
      ),
    );
    const p = await ns.until("bad-mount", ({ status }) => status.phase === "Failed");
    expect(first(p)?.state.terminated).toMatchObject({
      exitCode: 128,
      reason: "StartError",
      message: expect.stringMatching(/\/etc\/passwd.*not a directory/),
    });
  });

  test.each<
    [
      string,
      { image?: string; command?: string[]; workingDir?: string; imagePullPolicy?: string },
      RegExp,
      RegExp,
    ]
  >([
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
      "an image without a command",
      { image: "REGISTRY/bulkhead/no-command:1", command: [] },
      /^CreateContainerError$/,
      /neither the pod nor the image names a command/,
    ],
    [
      "a directory to work in that is a file",
      { workingDir: "/etc/passwd" },
      /^(?:RunContainerError|StartError)$/,
      /\/etc\/passwd.*not a directory|not a directory/,
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
    expect(`${text}\n${await ns.events(name)}`).toMatch(message);
  });
});
