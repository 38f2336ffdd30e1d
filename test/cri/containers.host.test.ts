import { mkdir, mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ensureTestImages } from "../images/build.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { inCache } from "../tools/cache.ts";
import { createDaemon, type Daemon, remains } from "./daemon.ts";

const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

let scratch: string;
let registry: RunningRegistry;
let daemon: Daemon;
let serial = 0;

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "bh-containers-"));
  registry = await startRegistry({ dir: inCache("cri-registry") });
  await ensureTestImages(registry.host, ["e2e-test-images/busybox:1.29-2"]);
  daemon = await createDaemon({ registry: registry.host, subnet: 96 });
  await daemon.start();
  await daemon.crictl("pull", busybox);
});
afterAll(async () => {
  await daemon?.[Symbol.asyncDispose]();
  await registry?.stop();
  await rm(scratch, { recursive: true, force: true });
});

type Fields = Record<string, unknown>;

const writeJson = async (name: string, value: Fields): Promise<string> => {
  const path = join(scratch, `${name}-${++serial}.json`);
  await writeFile(path, JSON.stringify(value));
  return path;
};

const podFile = async (linux: Fields = {}, more: Fields = {}): Promise<string> => {
  const logs = join(scratch, `logs-${serial}`);
  await mkdir(logs, { recursive: true });
  const name = `pod-${++serial}`;
  return await writeJson("pod", {
    metadata: { name, namespace: "test", uid: name, attempt: 0 },
    log_directory: logs,
    linux: { security_context: { namespace_options: { pid: 1 } }, ...linux },
    ...more,
  });
};

const containerFile = (script: string, more: Fields = {}): Promise<string> =>
  writeJson("container", {
    metadata: { name: "main", attempt: 0 },
    image: { image: busybox },
    command: ["sh", "-c", script],
    log_path: "main.log",
    ...more,
  });

/** Runs the script to its end in a pod of its own; what it said. */
const output = async (script: string, container: Fields = {}, pod: Fields = {}): Promise<string> => {
  const podConfig = await podFile(pod);
  const id = (await daemon.crictl("runp", podConfig)).trim();
  const config = await containerFile(`${script}; exec sleep 1000`, container);
  const main = (await daemon.crictl("create", id, config, podConfig)).trim();
  await daemon.crictl("start", main);
  const said = await daemon.crictl("exec", main, "sh", "-c", script);
  // Its own output goes to the log, however it opens it.
  await expect.poll(() => daemon.crictl("logs", main)).toBe(said);
  await daemon.crictl("rmp", "-f", id);
  return said;
};

/** What CreateContainer says when it refuses. */
const refusal = async (container: Fields, pod: Fields = {}): Promise<string> => {
  const podConfig = await podFile(pod);
  const run = await daemon.tryCrictl("runp", podConfig);
  if (run.code !== 0) return run.stderr.replaceAll('\\"', '"');
  const created = await daemon.tryCrictl(
    "create",
    run.stdout.trim(),
    await containerFile("true", container),
    podConfig,
  );
  await daemon.crictl("rmp", "-f", run.stdout.trim());
  expect(created.code).not.toBe(0);
  return created.stderr.replaceAll('\\"', '"');
};

const userns = (hostId: number, pid = 1): Fields => {
  const ids = [{ container_id: 0, host_id: hostId, length: 65536 }];
  return {
    security_context: {
      namespace_options: { pid, userns_options: { mode: 0, uids: ids, gids: ids } },
    },
  };
};

test("two pods run in user namespaces of different ranges, own their files and share volumes by id-mapped mounts", async () => {
  const volume = join(scratch, "volume");
  await mkdir(volume, { mode: 0o755 });
  for (const [index, hostId] of [200_000, 400_000].entries()) {
    const ids = [{ container_id: 0, host_id: hostId, length: 65536 }];
    const said = await output(
      [
        "cat /proc/self/uid_map",
        "touch /made /data/made",
        "stat -c %u:%g /made /bin/busybox /etc/hosts /data /data/made",
        "echo x > /dev/stdout; echo x > /dev/shm/x && echo shm",
        "id -u; ping -c1 127.0.0.1 > /dev/null && echo loopback; hostname box2 && echo named",
      ].join("; "),
      {
        mounts: [{ host_path: volume, container_path: "/data", uidMappings: ids, gidMappings: ids }],
        linux: { security_context: { capabilities: { add_capabilities: ["SYS_ADMIN"] } } },
      },
      userns(hostId, index),
    );
    const lines = said.trim().split("\n");
    expect(lines[0]?.trim().split(/\s+/)).toEqual(["0", String(hostId), "65536"]);
    expect(lines.slice(1).join(" ")).toMatch(/^(0:0 )+x shm 0 loopback named$/);
  }
  // On the node the files of both are root's, whoever made them.
  expect((await stat(volume)).uid).toBe(0);
  expect(await remains(daemon)).toEqual([]);
});

test.each([
  ["two mappings", { uids: 2 }, "userns_options.uids must be one mapping, not 2"],
  ["the node's root", { host: 0 }, "maps the pod's root to the node's"],
  ["the node's network", { network: 2 }, "with the node's network namespace"],
  ["a mode that is none", { mode: 1 }, "only POD and NODE are known"],
] as const)("a user namespace with %s is refused by name", async (_what, change, message) => {
  const { uids = 1, host = 100_000, network = 0, mode = 0 } = { ...change } as Record<string, number>;
  const id = { container_id: 0, host_id: host, length: 1000 };
  const said = await refusal(
    {},
    {
      security_context: {
        namespace_options: {
          pid: 1,
          network,
          userns_options: { mode, uids: Array.from({ length: uids }, () => id), gids: [id] },
        },
      },
    },
  );
  expect(said).toContain(message);
});

test("Status says of each handler whether it has user namespaces and recursive read-only mounts", async () => {
  const { runtimeHandlers } = JSON.parse(await daemon.crictl("info")) as {
    runtimeHandlers: { name: string; features: Record<string, boolean> }[];
  };
  const features = Object.fromEntries(runtimeHandlers.map(({ name, features }) => [name, features]));
  expect(features.runc).toMatchObject({ user_namespaces: true, recursive_read_only_mounts: true });
  expect(features.gvisor?.user_namespaces ?? false).toBe(false);
});
