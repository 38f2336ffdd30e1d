import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { canaryImage } from "@bulkhead/lib/api/group.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { imageOf, mediaTypes } from "../images/image.ts";
import { type Blob, blobOf, descriptorOf, pushBlob, pushManifest } from "../images/push.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { tarOf } from "../images/tar.ts";
import { run } from "../tools/run.ts";
import { arm64 } from "./arm64.ts";
import { hostAddress } from "./disk.ts";
import { type Machine, startMachine } from "./machine.ts";
import { killDaemon, podsOn } from "./pods.ts";

/**
 * The runtime on arm64, in a machine that QEMU emulates: what is written by architecture (structures of the kernel,
 * machine code, seccomp's architectures, the choice of an image) meets one that this machine is not. `./dev vm-arm64`.
 */

const image = "registry.k8s.io/both:1";
const both = ["amd64", "arm64"] as const;
const undo = new AsyncDisposableStack();
let registry: RunningRegistry;
let machine: Machine;
let index: Blob;
let amd64Manifest: Blob;
let amd64Index: Blob;

const { json, file, running, cgroupOf, exec, remove } = podsOn(() => machine, image);

/** Pushes an image or an artifact of one architecture; `root` are the files, beside busybox where it is an image. */
const push = async (name: string, architecture: string): Promise<Blob> => {
  const canaryApplets = ["readlink", "printf", "dmesg", "head"];
  const applets = ["sh", "sleep", "cat", "uname", "unshare", "echo", "true", "id", ...canaryApplets];
  const program = await readFile(arm64.busybox);
  const tar = tarOf([
    { type: "file", path: "bin/busybox", mode: 0o755, data: program },
    ...applets.map((applet) => ({ type: "symlink", path: `bin/${applet}`, to: "busybox" }) as const),
    { type: "file", path: "etc/architecture", data: `${architecture}\n` },
    { type: "file", path: "etc/passwd", data: "root:x:0:0:root:/:/bin/sh\n" },
    { type: "folder", path: "tmp" },
  ]);
  const layer = blobOf(mediaTypes.tar, tar);
  const { config, manifest } = imageOf(
    [{ diffId: layer.digest, blob: layer }],
    { Cmd: ["sleep", "3600"] },
    undefined,
    architecture,
  );
  const target = { url: registry.url, repository: name };
  for (const blob of [layer, config]) await pushBlob(target, blob);
  await pushManifest(target, manifest.digest, manifest);
  return manifest;
};

const indexOf = (manifests: object[]): Blob =>
  blobOf(mediaTypes.index, { schemaVersion: 2, mediaType: mediaTypes.index, manifests });

beforeAll(async () => {
  const dir = await mkdtemp(join(tmpdir(), "bulkhead-vm-registry-"));
  undo.defer(() => rm(dir, { recursive: true, force: true }));
  registry = undo.use(await startRegistry({ dir }));
  const images = [];
  for (const architecture of both)
    images.push({
      ...descriptorOf(await push("both", architecture)),
      platform: { os: "linux", architecture },
    });
  index = indexOf(images);
  await pushManifest({ url: registry.url, repository: "both" }, "1", index);
  amd64Manifest = await push("other", "amd64");
  amd64Index = indexOf(images.slice(0, 1));
  const other = { url: registry.url, repository: "other" };
  await pushManifest(other, "manifest", amd64Manifest);
  await pushManifest(other, "index", amd64Index);
  const [, canary = "", tag = ""] = /([^/:]+):([^:]+)$/.exec(canaryImage) ?? [];
  await pushManifest({ url: registry.url, repository: canary }, tag, await push(canary, "arm64"));
  const build = ["images/build.ts", "--only", "node-agent", "--arch", "amd64", "--arch", "arm64"];
  await run([process.execPath, ...build, "--registry", registry.host, "--tag", "vm", "--insecure"], {
    cwd: join(import.meta.dirname, "../.."),
  });
  machine = undo.use(await startMachine(registry.host, AbortSignal.timeout(1_500_000), arm64));
  await machine.sh(
    "for i in $(seq 200); do crictl version >/dev/null 2>&1 && exit 0; sleep 1; done; journalctl -u bulkhead-runtime --no-pager | tail -50; exit 1",
    300_000,
  );
});
afterAll(() => undo.disposeAsync());

test("the machine is arm64, and runtime and network are ready", async () => {
  expect(await machine.sh("uname -m; node -p process.arch")).toBe("aarch64\narm64\n");
  const { status } = await json<{ status: { conditions: object[] } }>("crictl info -o json 2>/dev/null");
  expect(status.conditions).toEqual(
    expect.arrayContaining([
      expect.objectContaining({ type: "RuntimeReady", status: true }),
      expect.objectContaining({ type: "NetworkReady", status: true }),
    ]),
  );
});

test("of an image for several architectures it takes its own, and refuses what has none for it", async () => {
  await machine.sh(`crictl pull ${image}`);
  for (const [tag, message] of [
    ["index", "it is not made for linux/arm64, only for linux/amd64"],
    ["manifest", "linux/amd64"],
  ] as const) {
    const { code, output } = await machine.trySh(`crictl pull registry.k8s.io/other:${tag}`);
    expect({ code, output }).toEqual({ code: 1, output: expect.stringContaining(message) as string });
  }
});

describe.each([
  { handler: "runc", kernel: /^Linux version \d/ },
  { handler: "gvisor", kernel: /-gvisor/ },
])("Under $handler", ({ handler, kernel }) => {
  test("a pod runs: exec, terminal, logs, stats, address; it lives through kill -9 of the daemon and stops when asked", async () => {
    const script =
      'trap "exit 7" TERM; cat /etc/architecture; i=0; while :; do i=$((i+1)); echo $i; sleep 1; done';
    const { pod, id } = await running(
      { memory_limit_in_bytes: 256 << 20 },
      { handler, command: ["sh", "-c", script] },
    );
    expect(await exec(id, "uname -m")).toBe("aarch64");
    expect(await exec(id, "cat /proc/version")).toMatch(kernel);
    const terminal = `script -qec 'crictl exec -it ${id} sh -c "[ -t 0 ] && echo terminal"' /dev/null`;
    expect(await machine.sh(terminal)).toContain("terminal");
    const { code } = await machine.trySh(`crictl exec -s ${id} sh -c 'exit 3'`);
    expect(code).not.toBe(0);
    const { stats } = await json<{
      stats: {
        memory: { workingSetBytes: { value: string } };
        cpu: { usageCoreNanoSeconds: { value: string } };
      }[];
    }>(`crictl stats -o json --id ${id} 2>/dev/null`);
    expect(Number(stats[0]?.memory.workingSetBytes.value)).toBeGreaterThan(0);
    expect(Number(stats[0]?.cpu.usageCoreNanoSeconds.value)).toBeGreaterThan(0);
    const { status } = await json<{ status: { network: { ip: string } } }>(
      `crictl inspectp -o json ${pod} 2>/dev/null`,
    );
    expect(status.network.ip).toMatch(/^10\.88\.0\.\d+$/);
    await machine.sh(`busybox ping -c 1 -w 20 ${status.network.ip}`);

    const lines = async (): Promise<string[]> =>
      (await machine.sh(`crictl logs ${id} 2>/dev/null`)).trim().split("\n");
    const before = await lines();
    expect(before[0]).toBe("arm64");
    await machine.sh(killDaemon, 300_000);
    expect(await exec(id, "cat /etc/architecture")).toBe("arm64");
    const after = await lines();
    expect(after.length).toBeGreaterThan(before.length);
    // No line was lost, none is there twice.
    expect(after.slice(1)).toEqual(after.slice(1).map((_, n) => `${n + 1}`));

    await machine.sh(`crictl stop -t 60 ${id} >/dev/null`);
    const { status: ended } = await json<{ status: object }>(`crictl inspect -o json ${id} 2>/dev/null`);
    expect(ended).toMatchObject({ state: "CONTAINER_EXITED", exitCode: 7 });
    await remove(pod);
  });
});

test("seccomp's default is on, and refuses what it should", async () => {
  // New user namespaces need no capability: seccomp alone refuses them.
  const answer = async (profile: number): Promise<string[]> => {
    const { pod, id } = await running({}, { security: { seccomp: { profile_type: profile } } });
    const pid = (await file(`${await cgroupOf(id)}/cgroup.procs`)).split("\n")[0];
    const mode = await machine.sh(`sed -n 's/^Seccomp:\\t//p' /proc/${pid}/status`);
    const said = await exec(id, `sh -c 'unshare -U cat /etc/architecture 2>&1 || true'`);
    await remove(pod);
    return [mode.trim(), said];
  };
  expect(await answer(0)).toEqual(["2", expect.stringContaining("Operation not permitted")]);
  expect(await answer(1)).toEqual(["0", "arm64"]);
});

test("a pod with a user namespace of its own has its ids mapped", async () => {
  const mapping = [{ host_id: 1_000_000, container_id: 0, length: 65536 }];
  const options = { namespace_options: { userns_options: { mode: 0, uids: mapping, gids: mapping } } };
  const { pod, id } = await running({}, { pod: { security_context: options }, security: options });
  expect((await exec(id, "cat /proc/self/uid_map")).split(/\s+/)).toEqual(["0", "1000000", "65536"]);
  await remove(pod);
});

test("the agent finds what of gVisor runs here, and its canary stands behind it", async () => {
  const program = "node /opt/bulkhead/test/main.mjs";
  const argv = ["/usr/local/bin/busybox", "/opt/bulkhead/bin/bulkhead-kvm-probe", "/usr/local/bin/runsc"];
  const found = await json<{ verdict: { assertions: string[] } }>(
    `${program} ${argv.join(" ")} ${paths.socket} gvisor systrap`,
    420_000,
  );
  expect(found).toMatchObject({ kvm: { runs: true }, verdict: { broken: [] } });
  expect(found).toMatchObject({ trials: [{ name: "systrap", works: true }, {}, { name: "ptrace" }] });
  expect(found.verdict.assertions).toContain("platform-as-profiled");
});

test("the agent's image has programs of arm64, which run: Node.js, the walls, and the probe of KVM", async () => {
  const agent = "registry.k8s.io/bulkhead/node-agent:vm";
  await machine.sh(`crictl pull ${agent}`, 900_000);
  const { pod, id } = await running({}, { image: agent, command: ["/bin/busybox", "sleep", "3600"] });
  const bin = "/bundle/bin";
  expect(await exec(id, `${bin}/node -p process.arch`)).toBe("arm64");
  for (const name of ["conmon", "runc", "crun", "runsc"])
    expect(await exec(id, `${bin}/${name} --version`), name).toMatch(/version/);
  expect(await exec(id, `${bin}/containerd-shim-runsc-v1 -v`)).toContain("containerd-shim-runsc-v1");
  // QEMU's processor runs guests.
  const pid = (await file(`${await cgroupOf(id)}/cgroup.procs`)).split("\n")[0];
  expect(await machine.sh(`/proc/${pid}/root${bin}/bulkhead-kvm-probe /dev/kvm`)).toBe("runs\n");
  await remove(pod);
});

test("of an artifact for several architectures it takes its own, and refuses what has none for it", async () => {
  // A registry on loopback is spoken to in plain HTTP.
  await machine.sh(
    `systemd-run --unit forward socat TCP-LISTEN:5000,fork,reuseaddr TCP:${hostAddress}:${registry.host.split(":")[1]}`,
  );
  const fetch = (image: string, directory: string) =>
    machine.trySh(
      `node /opt/bulkhead/runtime/main.mjs artifact fetch 127.0.0.1:5000/${image} ${directory} 2>&1`,
    );
  const own = await fetch(`both@${index.digest}`, "/root/own");
  expect(own).toEqual({ code: 0, output: expect.stringContaining('"platform":"linux/arm64"') as string });
  expect(await file("/root/own/root/etc/architecture")).toBe("arm64");
  for (const { digest } of [amd64Manifest, amd64Index]) {
    const { code, output } = await fetch(`other@${digest}`, "/root/other");
    expect({ code, output }).toEqual({ code: 1, output: expect.stringContaining("linux/arm64") as string });
  }
});

test("nothing is left: no scope, no slice of a pod, no mount, no process", async () => {
  await machine.trySh("systemctl stop 'kubepods-burstable-pod*.slice'");
  expect(await machine.sh("crictl pods -q 2>/dev/null")).toBe("");
  expect(await machine.sh("find /sys/fs/cgroup -name '*.scope' | grep -v init.scope || true")).toBe("");
  expect(await machine.sh("grep -c /run/bulkhead/containers /proc/self/mountinfo || true")).toBe("0\n");
  expect(await machine.sh("ps -eo args | grep -E '[c]onmon|[r]unsc|[b]ulkhead-holder' || true")).toBe("");
});
