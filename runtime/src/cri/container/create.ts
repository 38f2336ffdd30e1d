import { randomBytes } from "node:crypto";
import { mkdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { create } from "@bufbuild/protobuf";
import {
  type ContainerConfig,
  CreateContainerResponseSchema,
  NamespaceMode,
} from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { span } from "@bulkhead/lib/tracing/span.ts";
import { readAccounts } from "../../container/accounts.ts";
import { resolveCdi } from "../../container/cdi.ts";
import { allDevices, askedDevices } from "../../container/devices.ts";
import { specForGvisor } from "../../container/gvisor-paths.ts";
import { resolveMounts } from "../../container/mounts.ts";
import { relabel as relabelTree } from "../../container/relabel.ts";
import { makeInRoot, resolveInRoot } from "../../container/rootfs.ts";
import { readSeccomp } from "../../container/seccomp-file.ts";
import { created, newContainer } from "../../container/state.ts";
import { containerName } from "../../container/store.ts";
import type { Handler, HandlerState } from "../../handler/handler.ts";
import type { Image } from "../../image/images.ts";
import { timed } from "../../metrics.ts";
import { emptyDirHints } from "../../pod/empty-dirs.ts";
import { letThrough, podFiles } from "../../pod/files.ts";
import { type Pod, requireReady } from "../../pod/state.ts";
import { apparmorChoice, requireApparmor } from "../../spec/apparmor.ts";
import { capabilitiesOf } from "../../spec/capabilities.ts";
import { withEdits } from "../../spec/cdi.ts";
import { containerSpec } from "../../spec/container-spec.ts";
import { isGpu } from "../../spec/gvisor.ts";
import { logPathOf } from "../../spec/log-path.ts";
import type { ResolvedMount } from "../../spec/mounts.ts";
import { type PidChoice, podNamespaces } from "../../spec/namespaces.ts";
import type { Spec } from "../../spec/oci.ts";
import { seccompChoice } from "../../spec/seccomp.ts";
import { defaultSeccomp } from "../../spec/seccomp-default.ts";
import { type SelinuxLabels, selinuxLabels, selinuxOptions } from "../../spec/selinux.ts";
import { stopSignalOf } from "../../spec/stop-signal.ts";
import { type User, userOf } from "../../spec/user.ts";
import { podIdsOf, requireSameIds } from "../../spec/user-namespace.ts";
import { makeDisk } from "../disk.ts";
import { notify } from "../notify.ts";
import {
  containerDir,
  findContainer,
  now,
  podDir,
  type Runtime,
  type RuntimeMethods,
  sandboxRef,
} from "../runtime.ts";
import { afterTakeUp } from "../take-up.ts";
import { isVm, limitsOf } from "./guest.ts";
import { discardContainer } from "./remove.ts";
import { isCheckpoint, requireRestorable, type SavedContainer, takeCheckpoint } from "./restore.ts";

/** CreateContainer: root file system, specification, and a process that waits. A retry joins the one under way. */
export const createContainer =
  (runtime: Runtime): RuntimeMethods["createContainer"] =>
  async (request, signal) => {
    const pod = runtime.pods.require(request.podSandboxId);
    const { config } = request;
    if (!config?.metadata?.name)
      throw new RuntimeError("invalid-argument", "Cannot create a container without a name");
    const containerId = await runtime.starting.run(
      `container ${pod.id} ${config.metadata.name} ${config.metadata.attempt}`,
      (both) => createIn(runtime, pod.id, config, both),
      signal,
    );
    return create(CreateContainerResponseSchema, { containerId });
  };

/**
 * Makes a container in a pod that is ready. Of a checkpoint the memory image alone is taken; everything else is what
 * the request says.
 */
export const createIn = async (
  runtime: Runtime,
  podId: string,
  config: ContainerConfig,
  signal: AbortSignal,
): Promise<string> => {
  await afterTakeUp(runtime, podId, signal);
  using _ = runtime.activity.begin(podId);
  const pod = runtime.pods.require(podId);
  requireReady(pod, "create a container");
  const handler = runtime.handlers.running(pod.handler);
  const ref = config.image?.image ?? "";
  const named = runtime.images.get(ref);
  const restored = isCheckpoint(ref, named);
  if (named === undefined && !restored)
    throw new RuntimeError(
      "not-found",
      `Cannot create container "${config.metadata?.name}": image "${ref}" is not there`,
    );
  if (named?.isArtifact === true)
    throw new RuntimeError(
      "invalid-argument",
      `Cannot create container "${config.metadata?.name}": "${ref}" is an artifact for volumes, not a container image`,
    );
  if (restored) requireRestorable(ref, pod, handler);
  checkPrivileges(config, pod);
  requireSameIds(
    pod.config.linux?.securityContext?.namespaceOptions,
    config.linux?.securityContext?.namespaceOptions,
  );
  const apparmor = await apparmorOf(config, pod, runtime);
  const pid = pidOf(runtime, config, pod);
  const labels = labelsOf(runtime, config, pod);
  await clearName(runtime, podId, config);
  const id = randomBytes(32).toString("hex");
  const saved =
    restored && handler.restores
      ? await takeCheckpoint(runtime, { id, ref, image: named, kind: handler.restores }, signal)
      : undefined;
  const image = saved?.base ?? (named as Image);
  const stopSignal = stopSignalOf(config.stopSignal, image.config.stopSignal);
  const logPath = logPathOf(pod.config.logDirectory, config.logPath);
  runtime.containers.add(
    newContainer({ id, podId, createdAt: now(), config, imageId: image.id, logPath, stopSignal }),
  );
  try {
    const made = await timed(runtime.metrics, pod.handler.name, "create", () =>
      make(runtime, { id, pod, config, image, handler, pid, logPath, saved, labels, apparmor }, signal),
    );
    // Whoever gave up meanwhile would never learn the id.
    signal.throwIfAborted();
    runtime.containers.update(id, (container) => created(container, made));
  } catch (error) {
    await discardContainer(runtime, id).catch((err) =>
      runtime.log.warn({ container: id, err }, "container could not be rolled back"),
    );
    throw error;
  }
  notify(runtime, "created", id, podId);
  return id;
};

/**
 * What an earlier try left that could not be rolled back then keeps the name: whoever tries again, as a kubelet does
 * until it works, takes it away first. Nobody else makes one of this name: callers share one creation.
 */
const clearName = async (runtime: Runtime, podId: string, config: ContainerConfig): Promise<void> => {
  const left = runtime.containers.named(containerName({ podId, config }));
  if (left?.state === "creating") await discardContainer(runtime, left.id);
};

const checkPrivileges = (config: ContainerConfig, pod: Pod): void => {
  if (config.linux?.securityContext?.privileged && !pod.config.linux?.securityContext?.privileged)
    throw new RuntimeError(
      "invalid-argument",
      "Cannot create a privileged container in a pod that is not privileged",
    );
};

/**
 * The SELinux labels of a container; a privileged one has none. Where SELinux is off a label is nobody's to enforce: it
 * is left out and told, as everywhere; charts that were written for one node shall run on another.
 */
const labelsOf = (
  { host, log }: Pick<Runtime, "host" | "log">,
  config: ContainerConfig,
  pod: Pod,
): SelinuxLabels | undefined => {
  const security = config.linux?.securityContext;
  const asked = selinuxOptions(security?.selinuxOptions, pod.config.linux?.securityContext?.selinuxOptions);
  const labels = selinuxLabels(asked, { contexts: host.selinux?.contexts, level: pod.selinuxLevel });
  if (labels !== undefined && host.selinux === undefined)
    log.warn({ name: config.metadata?.name, label: labels.process }, "SELinux is off: label left out");
  return host.selinux === undefined || security?.privileged ? undefined : labels;
};

/**
 * The name of a container's AppArmor profile. The default is of the node's kernel: a sandbox has one of its own, and
 * its processes are no container's.
 */
const apparmorOf = async (
  config: ContainerConfig,
  pod: Pod,
  { host, defaultApparmor }: Pick<Runtime, "host" | "defaultApparmor">,
): Promise<string | undefined> => {
  const choice = apparmorChoice(config.linux?.securityContext);
  if (choice.use === "none") return undefined;
  if (choice.use === "default") return isVm(pod) || runscOf(pod) ? undefined : defaultApparmor;
  const loaded = host.apparmor
    ? await readFile("/sys/kernel/security/apparmor/profiles", "utf8").catch(() => undefined)
    : undefined;
  requireApparmor(choice.name, host.apparmor, loaded);
  return choice.name;
};

/** The PID namespace of the container. CRI's default, and its enum's zero, is the pod's. */
const pidOf = (runtime: Runtime, config: ContainerConfig, pod: Pod): PidChoice => {
  const options = config.linux?.securityContext?.namespaceOptions;
  const own = podNamespaces(pod.config);
  switch (options?.pid ?? NamespaceMode.POD) {
    case NamespaceMode.NODE:
      return { use: "host" };
    case NamespaceMode.CONTAINER:
      return { use: "own" };
    case NamespaceMode.TARGET: {
      const target = findContainer(runtime, options?.targetId ?? "");
      if (target === undefined || target.container.podId !== pod.id)
        throw new RuntimeError(
          "invalid-argument",
          `Cannot join container "${options?.targetId}": not in this pod`,
        );
      if (target.container.state !== "running")
        throw new RuntimeError(
          "failed-precondition",
          `Cannot join container "${options?.targetId}": it does not run`,
        );
      const pid = pidIn(target.container.handlerState);
      // Behind gVisor and in a guest it is the sandbox's process, whose namespace is another thing.
      if (pid === undefined || runscOf(pod) || isVm(pod))
        throw new RuntimeError(
          "unimplemented",
          "Cannot join another container: its processes are not the node's",
        );
      return { use: "join", path: `/proc/${pid}/ns/pid` };
    }
    default: {
      if (own.pid !== "pod") return own.pid === "host" ? { use: "host" } : { use: "own" };
      // gVisor's containers without a namespace of their own are in the sandbox's first one, the holder's.
      if (runscOf(pod)) return { use: "host" };
      const state = pod.held.sandbox?.state ?? {};
      if (typeof state.pidNamespace === "string") return { use: "join", path: state.pidNamespace };
      const holder = pidIn(state);
      if (holder !== undefined) return { use: "join", path: `/proc/${holder}/ns/pid` };
      throw new RuntimeError("internal", `Pod sandbox "${pod.id}" has no holder of its PID namespace`);
    }
  }
};

const runscOf = (pod: Pod) => (pod.handler.kind === "shim" ? pod.handler.runsc : undefined);

/** The first process as the handler tells it. */
export const pidIn = (state: HandlerState): number | undefined => {
  if (typeof state.pid === "number") return state.pid;
  for (const key of ["process", "task"]) {
    const inner = state[key];
    if (typeof inner === "object" && inner !== null && "pid" in inner && typeof inner.pid === "number")
      return inner.pid;
  }
  return undefined;
};

type Plan = {
  id: string;
  pod: Pod;
  config: ContainerConfig;
  image: Image;
  handler: Handler;
  pid: PidChoice;
  logPath: string;
  /** What was taken of a checkpoint, where it is made from one. */
  saved: SavedContainer | undefined;
  labels: SelinuxLabels | undefined;
  apparmor: string | undefined;
};

const make = async (runtime: Runtime, plan: Plan, signal: AbortSignal) => {
  const { id, pod, config, image, handler, labels } = plan;
  const { host, snapshotter, images } = runtime;
  const deadline = AbortSignal.any([signal, AbortSignal.timeout(pod.handler.deadlines.create * 1000)]);
  const security = config.linux?.securityContext;
  const stateDir = containerDir(runtime, id);
  const rootfs = join(stateDir, "rootfs");
  await mkdir(rootfs, { recursive: true, mode: 0o700 });
  const ids = podIdsOf(pod.config);
  const userNamespace = pod.held.namespaces?.user;
  const owners =
    ids === undefined || userNamespace === undefined
      ? undefined
      : { userNamespace, uid: ids.uids[0].hostID, gid: ids.gids[0].hostID };
  if (owners) await letThrough(stateDir, owners.gid);
  const relabel = async (source: string): Promise<void> => {
    if (labels) await relabelTree(source, labels.mount, runtime.linux, signal);
  };
  const files = podFiles(join(runtime.stateDir, "pods", pod.id), podNamespaces(pod.config).ipc);
  const imageMounts = config.mounts.flatMap((mount, index) =>
    mount.image?.image ? [join(stateDir, `image-${index}`)] : [],
  );
  const [mounts, devices, seccomp, cdi] = await Promise.all([
    resolveMounts(
      config.mounts,
      {
        images,
        snapshotter,
        recursiveReadOnly: handler.features().recursiveReadOnlyMounts,
        imageMountDir: async (index) => {
          const dir = join(stateDir, `image-${index}`);
          await mkdir(dir, { mode: 0o755 });
          return dir;
        },
        linux: runtime.linux,
        looker: runtime.reaper,
        owners,
        label: labels?.mount,
        relabel,
      },
      deadline,
    ),
    // Into a virtual machine the node's disks would be plugged: privileged is so inside it alone.
    security?.privileged && !isVm(pod) ? allDevices() : askedDevices(config.devices),
    seccompOf(config, host),
    resolveCdi(config.CDIDevices.map(({ name }) => name)),
    span("rootfs", { "bulkhead.layers": image.layers.length }, () =>
      snapshotter.mountContainer(id, image.layers, rootfs, {
        owners,
        label: labels?.mount,
        changes: plan.saved?.changes,
      }),
    ),
    // The node's own /dev/shm stays as it is.
    Promise.all(
      [files.hostname, files.hosts, files.resolvConf, ...(files.shm === "/dev/shm" ? [] : [files.shm])].map(
        relabel,
      ),
    ),
    plan.logPath === "" ? undefined : mkdir(dirname(plan.logPath), { recursive: true, mode: 0o755 }),
  ]);
  const runsc = runscOf(pod);
  const withGpus = runsc?.nvproxy !== false;
  const askedFor = [...(security?.privileged ? [] : devices), ...cdi.flatMap((each) => each.devices)];
  const gpu = withGpus ? undefined : askedFor.find(isGpu);
  if (gpu !== undefined)
    throw new RuntimeError(
      "failed-precondition",
      `Cannot give the container "${gpu.path}": handler "${pod.handler.name}" is gVisor that does not speak to NVIDIA's driver; use a profile with handler.gvisor.nvproxy`,
    );
  const user = userOf(security, image.config.user, await readAccounts(rootfs));
  const volumes = await volumesOf(image, config, rootfs);
  const plain = containerSpec({
    id,
    config,
    pod: {
      id: pod.id,
      config: pod.config,
      namespaces: pod.held.namespaces ?? {},
      hostname: pod.hostname,
      files,
    },
    image: image.config,
    user,
    mounts: [...volumes, ...mounts],
    devices: withGpus ? devices : devices.filter((each) => !isGpu(each)),
    // Of the node's kernel: a sandbox has another, and gVisor refuses them.
    labels: isVm(pod) || runscOf(pod) ? undefined : labels,
    apparmor: plan.apparmor,
    seccomp,
    pid: plan.pid,
    rootfs,
    allowedAnnotations: pod.handler.allowedAnnotations,
    host: limitsOf(pod, host),
  });
  const hints =
    runsc?.emptyDir === "sandbox" ? await emptyDirHints(podDir(runtime, pod.id), config.mounts) : {};
  const edited = withEdits(plain, cdi, security?.privileged ?? false);
  const spec = { ...edited, annotations: { ...hints, ...edited.annotations } };
  const disk = await makeDisk(runtime, pod.handler, { key: id, directory: rootfs }, signal);
  const handlerState = await handler.create(
    {
      id,
      sandbox: sandboxRef(runtime, pod),
      stateDir,
      rootfs,
      ...(disk === undefined ? {} : { disk }),
      spec: runsc ? await specForGvisor(spec, stateDir) : spec,
      tty: config.tty,
      stdin: config.stdin,
      stdinOnce: config.stdinOnce,
      logPath: plan.logPath,
      ...(plan.saved && { restoreFrom: plan.saved.images }),
    },
    deadline,
  );
  return {
    handlerState,
    user,
    process: spec.process as NonNullable<Spec["process"]>,
    imageMounts,
    resources: spec.linux?.resources ?? {},
  } satisfies { user: User } & Record<string, unknown>;
};

/**
 * Directories that the image calls volumes must be there. Under a read-only root they stay writable, which a
 * mount of the directory on itself does.
 */
const volumesOf = async (image: Image, config: ContainerConfig, rootfs: string): Promise<ResolvedMount[]> => {
  const taken = new Set(config.mounts.map((mount) => mount.containerPath));
  const places = image.config.volumes.filter(
    (place) => place.startsWith("/") && place !== "/" && !taken.has(place),
  );
  const mounts: ResolvedMount[] = [];
  for (const place of places) {
    await makeInRoot(rootfs, place);
    if (!config.linux?.securityContext?.readonlyRootfs) continue;
    mounts.push({
      destination: place,
      source: await resolveInRoot(rootfs, place),
      readonly: false,
      recursiveReadOnly: false,
      propagation: "private",
      options: [],
    });
  }
  return mounts;
};

const seccompOf = async (config: ContainerConfig, host: Runtime["host"]): Promise<unknown> => {
  const security = config.linux?.securityContext;
  const choice = seccompChoice(
    security?.seccomp,
    security?.seccompProfilePath ?? "",
    security?.privileged ?? false,
  );
  if (choice.use === "unconfined") return undefined;
  if (!host.seccomp)
    throw new RuntimeError("failed-precondition", "Cannot use a seccomp profile: the kernel has no seccomp");
  if (choice.use === "default")
    return defaultSeccomp(capabilitiesOf(security, host.capabilities).bounding, host.arch);
  return await readSeccomp(choice.path);
};
