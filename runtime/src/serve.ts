import { createHash } from "node:crypto";
import { statSync } from "node:fs";
import { chmod, mkdir } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { canaryNamespace } from "@bulkhead/lib/api/group.ts";
import type { Config } from "@bulkhead/lib/api/runtime-config.ts";
import { type CriServices, connectCri } from "@bulkhead/lib/cri/client.ts";
import type { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { startTracing } from "@bulkhead/lib/tracing/start.ts";
import type { Logger } from "pino";
import { loadDefaultApparmor } from "./container/apparmor.ts";
import { Exits } from "./container/exits.ts";
import { readHostFacts } from "./container/host-facts.ts";
import { exited } from "./container/state.ts";
import { openContainers } from "./container/store.ts";
import { userNamespaceTrouble } from "./container/user-namespace-probe.ts";
import { streamingBackend } from "./cri/container/streaming-backend.ts";
import { Events } from "./cri/events.ts";
import { createFormer } from "./cri/former.ts";
import { notify } from "./cri/notify.ts";
import { observer } from "./cri/observe.ts";
import { recover } from "./cri/recover.ts";
import type { Runtime } from "./cri/runtime.ts";
import { Sampler } from "./cri/sampler.ts";
import { serveCri } from "./cri/server.ts";
import { criServices } from "./cri/services.ts";
import { front } from "./handler/delegate/front.ts";
import type { Handler, HandlerEvents } from "./handler/handler.ts";
import { createOciHandler } from "./handler/oci/oci.ts";
import { collectMetrics, monitorSocket } from "./handler/shim/guest-metrics.ts";
import { openShimHost } from "./handler/shim/host.ts";
import { createShimHandler } from "./handler/shim/shim.ts";
import { Handlers } from "./handlers/handlers.ts";
import { SingleFlight } from "./image/single-flight.ts";
import { openImages } from "./image/store.ts";
import { createLinux } from "./linux/linux-ffi.ts";
import { endWhenTooLarge, trimWhenQuiet } from "./memory.ts";
import { createMetrics, serveMetrics } from "./metrics.ts";
import { createNetwork } from "./network/cni.ts";
import { lost, type Pod } from "./pod/state.ts";
import { openPods } from "./pod/store.ts";
import { ownPrograms } from "./programs.ts";
import { Activity } from "./record/activity.ts";
import { Locks } from "./record/lock.ts";
import { type Sandbox, sandboxMetrics } from "./sandbox-metrics.ts";
import { createDisks } from "./snapshot/disks.ts";
import { overlay } from "./snapshot/overlay.ts";
import { defaultApparmor } from "./spec/apparmor-default.ts";
import { readOnlyLabel } from "./spec/selinux.ts";
import { readLayout } from "./stats/layout.ts";
import { createStreamingServer } from "./streaming/server.ts";

/** Monitors live apart from the pods they watch and from the unit of this daemon. */
const monitorCgroup = "/bulkhead/monitors";
/** How long calls under way may take to end at shutdown. */
const closeMs = 5_000;

/** The daemon: resolves when it has shut down after `stop`. Containers go on. */
export const serve = async (
  config: Config,
  version: string,
  log: Logger,
  stop: AbortSignal,
): Promise<void> => {
  endWhenTooLarge((bytes, most) =>
    log.fatal({ bytes, most }, "too much memory: the daemon ends and begins anew; containers go on"),
  );
  // Everything below decides about modes itself.
  process.umask(0o022);
  await using stack = new AsyncDisposableStack();
  await mkdir(config.root, { recursive: true, mode: 0o700 });
  await mkdir(config.state, { recursive: true, mode: 0o711 });
  await chmod(config.state, 0o711);
  for (const dir of ["pods", "containers"]) {
    await mkdir(join(config.state, dir), { recursive: true, mode: 0o711 });
    // The root of a pod's user namespace must get through to its own directory; nobody can list or enter another's.
    await chmod(join(config.state, dir), 0o711);
  }

  const host = readHostFacts({ driver: config.cgroupDriver, selinux: config.selinux });
  if (host.selinux && host.selinux.contexts === undefined)
    log.warn(
      "SELinux is on, but its policy has no contexts for containers: only labels that pods ask for are set",
    );
  const readOnly = readOnlyLabel(host.selinux?.contexts);
  if (host.selinux?.contexts && readOnly === undefined)
    log.warn("SELinux's contexts for containers have no ro_file: layers keep the labels that they have");
  const noApparmor = host.apparmor ? await loadDefaultApparmor() : undefined;
  if (noApparmor !== undefined)
    log.warn({ reason: noApparmor }, "no default AppArmor profile: containers run without");
  const linux = createLinux();
  const layout = readLayout();
  const programs = await ownPrograms(join(config.root, "bin"));
  const noUserNamespaces = await userNamespaceTrouble({
    ...{ root: config.root, state: config.state, program: programs.reaper, linux },
  });
  if (noUserNamespaces !== undefined) log.warn({ reason: noUserNamespaces }, "no user namespaces for pods");
  const report = (error: RuntimeError): void => log.error({ err: error }, "record not readable");
  const pods = openPods(join(config.state, "records", "pods"));
  pods.load(report);
  const containers = openContainers(join(config.state, "records", "containers"));
  containers.load(report);

  const snapshotter = stack.use(
    await overlay(join(config.root, "snapshots"), linux, {
      form: config.layers,
      onFallback: (reason) =>
        log.info({ reason }, "layers are directories: this kernel mounts no EROFS images"),
      label: readOnly,
      onUnlabelled: (reason) =>
        log.warn({ reason }, "layers not labelled: where SELinux enforces, containers may not execute them"),
    }),
  );
  const metrics = createMetrics(noApparmor !== undefined, () =>
    pods
      .list()
      .filter((pod) => pod.state === "ready")
      .map((pod) => ({ handler: pod.handler.name, namespace: pod.config.metadata?.namespace ?? "" })),
  );
  stack.use(
    await startTracing({
      ...{ service: "bulkhead-runtime", version, resource: { "host.name": hostname() }, log },
      config: config.tracing,
      count: metrics.spans,
    }),
  );
  const images = stack.use(
    await openImages({
      root: join(config.root, "images"),
      snapshotter,
      mirrors: config.registries.mirrors,
      certsDir: config.registries.configPath,
      credentialsFile: config.registries.credentials ?? undefined,
      pinned: config.images.pinned,
      maxDownloads: config.images.maxDownloads,
      stallMs: config.images.pullProgressTimeout * 1000,
      signatures: config.images.signatures,
      metrics: metrics.images,
      log: log.child({ part: "image" }),
      inUse: () => containers.list().map(({ imageId }) => imageId),
    }),
  );
  const network = createNetwork(
    {
      ...config.cni,
      attachments: join(config.root, "attachments"),
      left: join(config.state, "left-networks"),
    },
    linux,
  );
  const exits = new Exits();
  const events = new Events();
  const told = { events, pods, containers, images };
  const handlerEvents: HandlerEvents = {
    containerExited: (id, exit) => {
      const before = containers.get(id);
      const container = containers.learn(id, (each) => exited(each, exit));
      exits.happened(id);
      if (container === undefined || container === before) return;
      log.info({ container: id, code: exit.code, oomKilled: exit.oomKilled }, "container exited");
      notify(told, "stopped", id, container.podId);
    },
    sandboxExited: (id, message) => {
      if (pods.get(id)?.state !== "ready") return;
      log.warn({ pod: id, message }, "pod sandbox lost");
      pods.learn(id, (pod) => lost(pod, message));
      notify(told, "stopped", id, id);
    },
  };
  const shimHost = stack.use(await openShimHost(join(config.state, "shim"), join(config.root, "bin"), linux));

  const make = async (handler: Parameters<Handlers["of"]>[0]): Promise<Handler> => {
    const handlerLog = log.child({ handler: handler.name });
    switch (handler.kind) {
      case "oci": {
        // Two versions of a handler watch their own containers only.
        const key = createHash("sha256").update(JSON.stringify(handler)).digest("hex").slice(0, 12);
        const made = await createOciHandler(
          {
            name: handler.name,
            revision: handler.revision ?? "",
            path: handler.binary,
            options: handler.flags,
            systemdCgroup: host.cgroupDriver === "systemd",
            restoreCheckpoints: handler.restoreCheckpoints ?? false,
          },
          {
            linux,
            events: handlerEvents,
            network,
            programs: { conmon: config.conmon, reaper: programs.reaper, pause: programs.holder },
            stateRoot: join(config.state, "oci", handler.name),
            exitDirectory: join(config.state, "exits", `${handler.name}-${key}`),
            cgroup: layout,
            monitorCgroup,
            log: handlerLog,
          },
        );
        stack.defer(() => made.close());
        return made;
      }
      case "shim":
        return stack.use(
          await createShimHandler(handler, {
            host: shimHost,
            linux,
            network,
            events: handlerEvents,
            log: handlerLog,
            systemdCgroup: host.cgroupDriver === "systemd",
            pauseProgram: programs.holder,
            restoreProgram: programs.reaper,
          }),
        );
    }
  };
  const handlers = stack.use(
    new Handlers({
      builtIn: config.runtimes,
      dir: config.handlersDir,
      defaultHandler: config.defaultHandler,
      make,
      log,
    }),
  );
  await handlers.start();

  const [, streamingHost = "", streamingPort = "0"] =
    /^\[?(.*?)\]?:(\d+)$/.exec(config.streaming.address) ?? [];
  const streaming = await createStreamingServer(
    { host: streamingHost, port: Number(streamingPort) },
    streamingBackend({ containers, pods, handlers, stateDir: config.state }),
  );
  stack.defer(() => streaming.close());

  const runtime: Runtime = {
    version,
    stateDir: config.state,
    restoreRoot: join(config.root, "restore"),
    host,
    linux,
    network,
    snapshotter,
    disks: await createDisks(join(config.root, "disks")),
    images,
    handlers,
    pods,
    containers,
    starting: new SingleFlight<string>(),
    locks: new Locks(),
    activity: new Activity(),
    silentPods: new Set(),
    former: createFormer({ network, pods, log }, stop),
    exits,
    events,
    sampler: new Sampler(),
    streaming,
    metrics,
    log,
    defaultApparmor: host.apparmor && noApparmor === undefined ? defaultApparmor : undefined,
    reaper: programs.reaper,
    noUserNamespaces,
    config: { verbose: () => config },
  };
  await recover(runtime, stop);
  await runtime.former.release();

  const services = fronted(criServices(runtime), runtime, config, stack);
  let ready = true;
  if (config.metrics.listen !== "") {
    const server = await serveMetrics(
      config.metrics.listen,
      metrics,
      () => ready,
      async () => {
        const now = pods.list();
        return (await Promise.all([sandboxMetrics(sandboxesOf(now)), collectMetrics(guestsOf(now))])).join(
          "",
        );
      },
    );
    stack.defer(() => void server.close());
  }
  const server = await serveCri(config.socket, services, observer(log, metrics));
  trimWhenQuiet();
  log.info({ socket: config.socket, version, handlers: handlers.list().map(({ name }) => name) }, "serving");
  if (!stop.aborted) await new Promise((resolve) => stop.addEventListener("abort", resolve, { once: true }));
  ready = false;
  log.info("shutting down; containers go on");
  await server.close(AbortSignal.timeout(closeMs));
};

/** The pods that run in gVisor, the agent's canaries aside. */
const sandboxesOf = (pods: readonly Pod[]): Sandbox[] =>
  pods.flatMap(({ id, state, handler, config: { metadata } }) =>
    state === "ready" &&
    handler.kind === "shim" &&
    handler.runsc !== undefined &&
    metadata?.namespace !== canaryNamespace
      ? [
          {
            ...{ id, root: handler.runsc.root, handler: handler.name },
            ...{ namespace: metadata?.namespace ?? "", pod: metadata?.name ?? "" },
          },
        ]
      : [],
  );

/** Pods that are virtual machines, the agent's canaries aside, with the sockets that their shims serve metrics on. */
const guestsOf = (pods: readonly Pod[]) =>
  pods.flatMap(({ id, state, handler, config: { metadata } }) => {
    const kata = handler.kind === "shim" ? handler.kata : undefined;
    if (!kata?.metrics || state !== "ready" || metadata?.namespace === canaryNamespace) return [];
    const labels = { pod: metadata?.name ?? "", namespace: metadata?.namespace ?? "", handler: handler.name };
    return [{ labels, socket: monitorSocket(kata, id) }];
  });

/** With a delegate, its services stand behind ours; everything that is not ours is its. */
const fronted = (
  own: CriServices,
  runtime: Runtime,
  config: Config,
  stack: AsyncDisposableStack,
): CriServices => {
  if (config.delegate === null) return own;
  const engine = stack.use(connectCri(config.delegate.socket));
  const device = (path: string): bigint | undefined =>
    statSync(path, { bigint: true, throwIfNoEntry: false })?.dev;
  return front(own, engine, {
    // "" is the engine's own default.
    hasHandler: (name) => name !== "" && runtime.handlers.has(name),
    hasPod: (id) => runtime.pods.find(id) !== undefined,
    hasContainer: (id) => runtime.containers.find(id) !== undefined,
    hasPodUid: (uid) => runtime.pods.list().some((pod) => pod.config.metadata?.uid === uid),
    sameDisk: (mountpoint) => device(mountpoint) === device(config.root),
    stateDir: join(config.state, "engine"),
    log: runtime.log,
  });
};
