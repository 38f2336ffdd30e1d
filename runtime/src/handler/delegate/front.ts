import { setTimeout as sleep } from "node:timers/promises";
import { create, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import type { CriClient, CriServices } from "@bulkhead/lib/cri/client.ts";
import {
  type ContainerEventResponse,
  type CreateContainerRequest,
  ImageService,
  ImageSpecSchema,
  ImageStatusRequestSchema,
  type PullImageRequest,
  PullImageRequestSchema,
  RuntimeService,
  StreamContainerStatsResponseSchema,
  StreamContainersResponseSchema,
  StreamImagesResponseSchema,
  StreamPodSandboxesResponseSchema,
  StreamPodSandboxMetricsResponseSchema,
  StreamPodSandboxStatsResponseSchema,
  VersionRequestSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { hasCode, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { shownLogPath } from "../../spec/log-path.ts";
import { Credentials } from "./credentials.ts";
import { LastKnown } from "./last-known.ts";
import { mergeFsInfo, mergeImages, mergeStatus, mergeVersion } from "./merge.ts";

/** What the front must know of our own side. */
export type OwnSide = {
  hasHandler(name: string): boolean;
  /** By full id or unique prefix. */
  hasPod(id: string): boolean;
  hasContainer(id: string): boolean;
  /** True when the pod with this Kubernetes uid has a sandbox of ours. */
  hasPodUid(uid: string): boolean;
  /** True when both engines keep images on one file system. */
  sameDisk(engineMountpoint: string): boolean;
  /** Directory on tmpfs for the engine's last answers. */
  stateDir: string;
  log: { warn(fields: object, message: string): void };
};

/** Between two looks whether an engine whose event stream broke is back. */
const eventRetry = 1_000;
/** The engine says the same thing every second while it is down; the log says it once a minute. */
const quiet = 60_000;

/**
 * Puts our services in front of the engine that the node had: handlers and ids that are ours are served here,
 * everything else there. The engine's absence fails the calls for its own pods and nothing else.
 */
export function front(own: CriServices, engine: CriClient, side: OwnSide): CriServices {
  const credentials = new Credentials();
  let lastWarning = Number.NEGATIVE_INFINITY;
  const lists = new LastKnown(side.stateDir, (method, error) => {
    if (performance.now() - lastWarning < quiet) return;
    lastWarning = performance.now();
    side.log.warn({ method, err: error }, "engine behind does not answer; its pods are listed as last seen");
  });
  const methods = RuntimeService.method;

  /** To whom a call about one pod or one container goes. */
  const byPod =
    <Q extends { podSandboxId: string }, A>(ours: Call<Q, A>, theirs: Call<Q, A>): Call<Q, A> =>
    (request, signal) =>
      (side.hasPod(request.podSandboxId) ? ours : theirs)(request, signal);
  const byContainer =
    <Q extends { containerId: string }, A>(ours: Call<Q, A>, theirs: Call<Q, A>): Call<Q, A> =>
    (request, signal) =>
      (side.hasContainer(request.containerId) ? ours : theirs)(request, signal);

  /** One list of both. */
  const both =
    <I extends DescMessage, O extends DescMessage>(
      method: { localName: string; input: I; output: O },
      ours: Call<MessageShape<I>, MessageShape<O>>,
      theirs: Call<MessageShape<I>, MessageShape<O>>,
      merge: (own: MessageShape<O>, engine: MessageShape<O>) => MessageShape<O>,
    ): Call<MessageShape<I>, MessageShape<O>> =>
    async (request, signal) => {
      const [mine, other] = await Promise.all([
        ours(request, signal),
        lists.list(method.localName, method, request, theirs, signal),
      ]);
      return merge(mine, other);
    };

  const { runtime: r, image: i } = own;
  const { runtime: er, image: ei } = engine;

  const listPodSandbox = both(methods.listPodSandbox, r.listPodSandbox, er.listPodSandbox, (a, b) => ({
    ...a,
    items: [...a.items, ...b.items],
  }));
  const listContainers = both(methods.listContainers, r.listContainers, er.listContainers, (a, b) => ({
    ...a,
    containers: [...a.containers, ...b.containers],
  }));
  const listContainerStats = both(
    methods.listContainerStats,
    r.listContainerStats,
    er.listContainerStats,
    (a, b) => ({
      ...a,
      stats: [...a.stats, ...b.stats],
    }),
  );
  const listPodSandboxStats = both(
    methods.listPodSandboxStats,
    r.listPodSandboxStats,
    er.listPodSandboxStats,
    (a, b) => ({ ...a, stats: [...a.stats, ...b.stats] }),
  );
  const listPodSandboxMetrics = both(
    methods.listPodSandboxMetrics,
    r.listPodSandboxMetrics,
    er.listPodSandboxMetrics,
    (a, b) => ({ ...a, podMetrics: [...a.podMetrics, ...b.podMetrics] }),
  );
  const listImages = both(ImageService.method.listImages, i.listImages, ei.listImages, (a, b) => ({
    ...a,
    images: mergeImages(a.images, b.images),
  }));

  /** Pulls on one side what only the other has, by digest, with the credentials that this pod was pulled with. */
  async function bringImage(
    request: CreateContainerRequest,
    to: CriServices["image"],
    from: CriServices["image"],
    signal: AbortSignal,
  ): Promise<void> {
    const spec = request.config?.image;
    if (!spec?.image) return;
    const here = await to.imageStatus(create(ImageStatusRequestSchema, { image: spec }), signal);
    if (here.image) return;
    const there = await from
      .imageStatus(create(ImageStatusRequestSchema, { image: spec }), signal)
      .catch(ifUnavailable(undefined));
    const ref = there?.image?.repoDigests[0] ?? there?.image?.repoTags[0] ?? spec.userSpecifiedImage;
    if (!ref) return;
    const auth = credentials.of(request.sandboxConfig?.metadata?.uid, ref);
    await to.pullImage(
      create(PullImageRequestSchema, {
        image: create(ImageSpecSchema, { image: ref, annotations: spec.annotations }),
        ...(auth && { auth }),
        ...(request.sandboxConfig && { sandboxConfig: request.sandboxConfig }),
      }),
      signal,
    );
  }

  const isOurPull = (request: PullImageRequest): boolean => {
    const uid = request.sandboxConfig?.metadata?.uid;
    if (uid) return side.hasPodUid(uid);
    const handler = request.image?.runtimeHandler;
    return handler ? side.hasHandler(handler) : false;
  };

  const runtime: CriServices["runtime"] = {
    version: async (request, signal) => {
      const mine = await r.version(request, signal);
      return mergeVersion(mine, await lists.list("version", methods.version, request, er.version, signal));
    },
    status: async (request, signal) => {
      const mine = await r.status(request, signal);
      const asked = { ...request, verbose: false };
      return mergeStatus(mine, await lists.list("status", methods.status, asked, er.status, signal));
    },
    runtimeConfig: r.runtimeConfig,
    updateRuntimeConfig: async (request, signal) => {
      await er.updateRuntimeConfig(request, signal).catch(ifUnavailable(undefined));
      return r.updateRuntimeConfig(request, signal);
    },

    runPodSandbox: (request, signal) =>
      (side.hasHandler(request.runtimeHandler) ? r : er).runPodSandbox(request, signal),
    stopPodSandbox: byPod(r.stopPodSandbox, er.stopPodSandbox),
    removePodSandbox: byPod(r.removePodSandbox, er.removePodSandbox),
    podSandboxStatus: byPod(r.podSandboxStatus, er.podSandboxStatus),
    portForward: byPod(r.portForward, er.portForward),
    podSandboxStats: byPod(r.podSandboxStats, er.podSandboxStats),
    updatePodSandboxResources: byPod(r.updatePodSandboxResources, er.updatePodSandboxResources),
    checkpointPod: byPod(r.checkpointPod, er.checkpointPod),
    restorePod: (request, signal) =>
      (side.hasHandler(request.runtimeHandler) ? r : er).restorePod(request, signal),
    listPodSandbox,

    createContainer: async (request, signal) => {
      if (side.hasPod(request.podSandboxId)) {
        await bringImage(request, i, ei, signal);
        return r.createContainer(request, signal);
      }
      await bringImage(request, ei, i, signal);
      return er.createContainer(request, signal);
    },
    startContainer: byContainer(r.startContainer, er.startContainer),
    stopContainer: byContainer(r.stopContainer, er.stopContainer),
    removeContainer: byContainer(r.removeContainer, er.removeContainer),
    containerStatus: byContainer(r.containerStatus, async (request, signal) => {
      const answer = await er.containerStatus(request, signal);
      if (answer.status) answer.status.logPath = shownLogPath(answer.status.logPath);
      return answer;
    }),
    updateContainerResources: byContainer(r.updateContainerResources, er.updateContainerResources),
    reopenContainerLog: byContainer(r.reopenContainerLog, er.reopenContainerLog),
    execSync: byContainer(r.execSync, er.execSync),
    exec: byContainer(r.exec, er.exec),
    attach: byContainer(r.attach, er.attach),
    containerStats: byContainer(r.containerStats, er.containerStats),
    checkpointContainer: byContainer(r.checkpointContainer, er.checkpointContainer),
    listContainers,
    listContainerStats,
    listPodSandboxStats,
    listPodSandboxMetrics,
    listMetricDescriptors: both(
      methods.listMetricDescriptors,
      r.listMetricDescriptors,
      er.listMetricDescriptors,
      (a, b) => {
        const names = new Set(a.descriptors.map(({ name }) => name));
        return {
          ...a,
          descriptors: [...a.descriptors, ...b.descriptors.filter(({ name }) => !names.has(name))],
        };
      },
    ),

    streamPodSandboxes: async function* (request, signal) {
      const { items } = await listPodSandbox(
        create(methods.listPodSandbox.input, withFilter(request)),
        signal,
      );
      for (const item of items) yield create(StreamPodSandboxesResponseSchema, { podSandboxes: [item] });
    },
    streamContainers: async function* (request, signal) {
      const { containers } = await listContainers(
        create(methods.listContainers.input, withFilter(request)),
        signal,
      );
      for (const item of containers) yield create(StreamContainersResponseSchema, { containers: [item] });
    },
    streamContainerStats: async function* (request, signal) {
      const { stats } = await listContainerStats(
        create(methods.listContainerStats.input, withFilter(request)),
        signal,
      );
      for (const item of stats) yield create(StreamContainerStatsResponseSchema, { containerStats: [item] });
    },
    streamPodSandboxStats: async function* (request, signal) {
      const { stats } = await listPodSandboxStats(
        create(methods.listPodSandboxStats.input, withFilter(request)),
        signal,
      );
      for (const item of stats)
        yield create(StreamPodSandboxStatsResponseSchema, { podSandboxStats: [item] });
    },
    streamPodSandboxMetrics: async function* (_request, signal) {
      const { podMetrics } = await listPodSandboxMetrics(create(methods.listPodSandboxMetrics.input), signal);
      for (const item of podMetrics)
        yield create(StreamPodSandboxMetricsResponseSchema, { podSandboxMetrics: [item] });
    },
    getContainerEvents: (request, signal) =>
      mergeEvents(
        [
          r.getContainerEvents(request, signal),
          engineEvents(engine, () => er.getContainerEvents(request, signal), signal),
        ],
        signal,
      ),
  };

  const image: CriServices["image"] = {
    listImages,
    streamImages: async function* (request, signal) {
      const { images } = await listImages(
        create(ImageService.method.listImages.input, withFilter(request)),
        signal,
      );
      for (const item of images) yield create(StreamImagesResponseSchema, { images: [item] });
    },
    // kubelet asks before it says for which pod: what either has need not be pulled, CreateContainer brings it over.
    imageStatus: async (request, signal) => {
      const mine = await i.imageStatus(request, signal);
      if (mine.image) return mine;
      return await ei.imageStatus(request, signal).catch(ifUnavailable(mine));
    },
    pullImage: (request, signal) => {
      credentials.remember(request);
      return (isOurPull(request) ? i : ei).pullImage(request, signal);
    },
    removeImage: async (request, signal) => {
      const answer = await i.removeImage(request, signal);
      await ei.removeImage(request, signal);
      return answer;
    },
    imageFsInfo: async (request, signal) => {
      const method = ImageService.method.imageFsInfo;
      const [mine, other] = await Promise.all([
        i.imageFsInfo(request, signal),
        lists.list("imageFsInfo", method, request, ei.imageFsInfo, signal),
      ]);
      return mergeFsInfo(mine, other, side.sameDisk(other.imageFilesystems[0]?.fsId?.mountpoint ?? ""));
    },
  };
  return { runtime, image };
}

type Call<Q, A> = (request: Q, signal: AbortSignal) => Promise<A>;

const withFilter = <F>(request: { filter?: F }): { filter?: F } =>
  request.filter ? { filter: request.filter } : {};

/** For calls where the engine's absence must not be our failure. */
const ifUnavailable =
  <T>(instead: T) =>
  (error: unknown): T => {
    if (hasCode(error, "unavailable")) return instead;
    throw error;
  };

/** The engine's events for as long as the client listens. When they break it ends in an error, once the engine is back. */
async function* engineEvents(
  engine: CriClient,
  open: () => AsyncIterable<ContainerEventResponse>,
  signal: AbortSignal,
): AsyncGenerator<ContainerEventResponse> {
  try {
    yield* open();
  } catch (error) {
    // CRI-O without enable_pod_events has none to give.
    if (hasCode(error, "unimplemented")) return;
  }
  while (!signal.aborted) {
    await sleep(eventRetry, undefined, { signal }).catch(() => {});
    const isBack = await engine.runtime
      .version(create(VersionRequestSchema), AbortSignal.any([signal, AbortSignal.timeout(eventRetry)]))
      .then(
        () => true,
        () => false,
      );
    if (!isBack) continue;
    // Nobody kept what happened meanwhile: the caller must list, which it does when its stream breaks.
    throw new RuntimeError(
      "unavailable",
      "Cannot send more events: those of the engine behind were interrupted; list the containers and begin anew",
    );
  }
}

/** One stream of several; ends when all have ended, fails when ours fails. */
async function* mergeEvents(
  sources: AsyncIterable<ContainerEventResponse>[],
  signal: AbortSignal,
): AsyncGenerator<ContainerEventResponse> {
  const iterators = sources.map((source) => source[Symbol.asyncIterator]());
  const next = (index: number) =>
    (iterators[index] as AsyncIterator<ContainerEventResponse>).next().then((result) => ({ index, result }));
  const pending = new Map(iterators.map((_, index) => [index, next(index)]));
  try {
    while (pending.size > 0 && !signal.aborted) {
      const { index, result } = await Promise.race(pending.values());
      if (result.done) {
        pending.delete(index);
        continue;
      }
      pending.set(index, next(index));
      yield result.value;
    }
  } finally {
    for (const iterator of iterators) void iterator.return?.(undefined)?.catch(() => {});
  }
}
