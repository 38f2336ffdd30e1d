import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { chmod, copyFile, mkdir, open, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { tool } from "../tools/cache.ts";
import { type Outcome, outcome, type RunOptions, run } from "../tools/run.ts";
import { bundleLayer } from "./bundle-layer.ts";
import { kubeconfig, pki } from "./certificates.ts";
import { killCgroups, removeCgroups, unmountBelow } from "./mounts.ts";
import { plugNode } from "./network.ts";
import { capabilitiesOf, type MachineFacts, nodeBundle, plainDirs, wantedDevices } from "./node-bundle.ts";
import { enabledUnits, maskedUnits, nodeFiles } from "./node-files.ts";
import type { ClusterPlan, NodePlan } from "./plan.ts";
import { nodePrograms, nodeRootfs } from "./rootfs.ts";

const runc = (plan: ClusterPlan, ...args: string[]): string[] => [
  tool("runc"),
  "--root",
  `${plan.run}/runc`,
  ...args,
];

/** The state of a node's container as runc tells it, or undefined when there is none. */
export const nodeState = async (
  plan: ClusterPlan,
  node: NodePlan,
): Promise<{ status: string; pid: number } | undefined> => {
  const { code, stdout } = await outcome(runc(plan, "state", node.container));
  return code === 0 ? (JSON.parse(stdout) as { status: string; pid: number }) : undefined;
};

/** Boots a node, on the disk it had before if there is one. One whose engine is Bulkhead gets the present source's. */
export const bootNode = async (plan: ClusterPlan, node: NodePlan, signal: AbortSignal): Promise<void> => {
  await haltNode(plan, node);
  const lower = await Promise.all([
    ...(node.description.engine === "bulkhead" ? [bundleLayer(plan, signal)] : []),
    nodePrograms(plan.kubernetes.kubelet),
    nodeRootfs(signal),
  ]);
  const bundle = `${node.run}/bundle`;
  const merged = `${node.run}/rootfs`;
  const [upper, work] = [`${node.disk}/upper`, `${node.disk}/work`];
  for (const dir of [
    bundle,
    merged,
    upper,
    work,
    `${plan.run}/runc`,
    ...plainDirs.map((d) => `${node.disk}/plain${d}`),
  ])
    await mkdir(dir, { recursive: true });
  await chmod(upper, 0o755);
  await writeIdentity(plan, node, upper);
  await run(
    [
      "mount",
      "-t",
      "overlay",
      node.container,
      "-o",
      `lowerdir=${lower.join(":")},upperdir=${upper},workdir=${work}`,
      merged,
    ],
    { signal },
  );
  await writeFile(
    `${bundle}/config.json`,
    JSON.stringify(nodeBundle(plan, node, merged, await machineFacts())),
  );
  await using console = await open(`${plan.disk}/logs/${node.name}.console.log`, "a");
  await runDetached(
    runc(plan, "create", "--bundle", bundle, "--pid-file", `${node.run}/pid`, node.container),
    console.fd,
  );
  const pid = Number(await readFile(`${node.run}/pid`, "utf8"));
  await plugNode(plan, node, pid, signal);
  await run(runc(plan, "start", node.container), { signal });
};

/** Ends a node at once, as a power cut would, and takes its mounts and cgroups away. Its disk stays. */
export const haltNode = async (plan: ClusterPlan, node: NodePlan): Promise<void> => {
  // Its first process takes all others of its PID namespace along.
  await outcome(runc(plan, "kill", node.container, "KILL"));
  await killCgroups(node.cgroup);
  await outcome(runc(plan, "delete", "--force", node.container));
  await rm(`${plan.run}/runc/${node.container}`, { recursive: true, force: true });
  await unmountBelow(node.run);
  await removeCgroups(node.cgroup);
};

/** Runs a program on a node. */
export const execOnNode = (
  plan: ClusterPlan,
  node: NodePlan,
  argv: readonly string[],
  options: RunOptions = {},
): Promise<Outcome> => outcome(runc(plan, "exec", node.container, ...argv), options);

/** Gives a person a shell on a node, on this terminal. Returns its exit code. */
export const shellOnNode = (plan: ClusterPlan, node: NodePlan, argv: readonly string[]): Promise<number> =>
  new Promise((resolve, reject) => {
    const tty = process.stdin.isTTY && process.stdout.isTTY ? ["--tty"] : [];
    const term = ["--env", `TERM=${process.env.TERM ?? "dumb"}`, "--env", "HOME=/root"];
    const [program = "", ...args] = runc(plan, "exec", ...tty, ...term, node.container, ...argv);
    spawn(program, args, { stdio: "inherit" })
      .on("error", reject)
      .on("close", (code) => resolve(code ?? 1));
  });

/** Copies a file of this machine onto a node, with its mode. */
export const copyToNode = async (node: NodePlan, from: string, to: string): Promise<void> => {
  const target = join(node.run, "rootfs", to);
  await mkdir(dirname(target), { recursive: true });
  await copyFile(from, target);
  await chmod(target, (await stat(from)).mode & 0o7777);
};

/** Names, certificates, configuration and units, written once per boot: what a person changed since stays changed. */
const writeIdentity = async (plan: ClusterPlan, node: NodePlan, upper: string): Promise<void> => {
  const at = pki(plan);
  const pair = at.node(node.name);
  const [ca, cert, key] = await Promise.all(
    [at.ca.cert, pair.cert, pair.key].map((p) => readFile(p, "utf8")),
  );
  const pem = { ca: ca!, cert: cert!, key: key! };
  const files = nodeFiles(plan, node, {
    ca: pem.ca,
    kubeconfig: kubeconfig(plan, `system:node:${node.name}`, pem),
  });
  const units = join(upper, "etc/systemd/system");
  for (const { path, text, mode } of files) {
    const target = join(upper, path);
    if (existsSync(target)) continue;
    await mkdir(dirname(target), { recursive: true });
    await writeFile(target, text, { mode: mode ?? 0o644 });
  }
  for (const dir of ["/etc/kubernetes/manifests", "/etc/containerd/conf.d", "/var/log/journal"])
    await mkdir(join(upper, dir), { recursive: true });
  await mkdir(join(units, "multi-user.target.wants"), { recursive: true });
  for (const unit of enabledUnits(node))
    await linkOnce(`/etc/systemd/system/${unit}`, join(units, "multi-user.target.wants", unit));
  for (const unit of maskedUnits) await linkOnce("/dev/null", join(units, unit));
};

const linkOnce = async (target: string, path: string): Promise<void> => {
  await symlink(target, path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "EEXIST") throw error;
  });
};

/** `runc create` leaves its stdio to the container: a pipe would keep us waiting for the node's end. */
const runDetached = async (argv: readonly string[], log: number): Promise<void> => {
  const [program = "", ...args] = argv;
  const code = await new Promise<number | null>((resolve, reject) => {
    spawn(program, args, { stdio: ["ignore", log, log], cwd: "/" })
      .on("error", (error) => reject(new RuntimeError("unavailable", messageOf(error))))
      .on("exit", resolve);
  });
  if (code !== 0)
    throw new RuntimeError(
      "unknown",
      `Cannot create node with ${basename(program)}: exit code ${code}, see its console log`,
    );
};

const machineFacts = async (): Promise<MachineFacts> => {
  const status = await readFile("/proc/self/status", "utf8");
  const devices = await Promise.all(
    wantedDevices.map(async (path) => {
      const found = await stat(path).catch(() => undefined);
      if (found === undefined) return undefined;
      // glibc's makedev(3).
      const major = Number((BigInt(found.rdev) >> 8n) & 0xfffn);
      const minor = Number((BigInt(found.rdev) & 0xffn) | ((BigInt(found.rdev) >> 12n) & 0xfff00n));
      return {
        path,
        type: found.isBlockDevice() ? ("b" as const) : ("c" as const),
        major,
        minor,
        mode: found.mode & 0o777,
      };
    }),
  );
  return {
    capabilities: capabilitiesOf(/^CapBnd:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0"),
    devices: devices.filter((device) => device !== undefined),
  };
};
