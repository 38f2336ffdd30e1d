/** What a simulation measured. */
export type Phase = {
  phase: string;
  writtenSeconds: number;
  readySeconds: number;
  afterLastAnswerSeconds: number;
  /** The operator's, of all kinds, and those that write. */
  requests: number;
  writes: number;
  cpuSeconds: number;
  megabytes: number;
};

export type Result = {
  nodes: number;
  profiles: number;
  phases: Phase[];
  quiet: {
    seconds: number;
    requests: number;
    writes: number;
    cpuSeconds: number;
    /** Status writes of agents by kind, and of kubelets. */
    heartbeats: number;
    sameAgain: number;
    flaps: number;
    kubelets: number;
  };
  operator: { peakMegabytes: number; cpuSeconds: number };
  largestBytes: { NodeRuntime: number; RuntimeProfile: number };
};

const most = {
  secondsAfterLastAnswer: 60,
  megabytes: 300,
  bytes: 32 * 1024,
  /** Of the operator, for each node that changes: its NodeRuntime, its labels, a second of each for what fails at first. */
  requestsPerNode: 5,
  /** A status of a profile is written ten times a second at most, however many nodes there are. */
  statusesPerSecond: 10,
};

/** Requests that a phase may take: by the nodes that changed, and by how long the statuses had something to say. */
const allowed = ({ nodes, profiles }: Result, { readySeconds }: Phase): number =>
  nodes * most.requestsPerNode + readySeconds * most.statusesPerSecond + profiles * 20;

/** The goals that were missed, in words. Without `times`, what a busy machine cannot change. */
export const missed = (result: Result, times: boolean): string[] => {
  const { phases, quiet, operator, largestBytes } = result;
  const { seconds, requests, flaps } = quiet;
  const late = phases.filter((phase) => phase.afterLastAnswerSeconds > most.secondsAfterLastAnswer);
  const dear = phases.filter((phase) => phase.requests > allowed(result, phase));
  // The Lease's, which is read and written every two seconds, watches that end, and what a node that flaps asks for.
  const quietAllowed = 10 + seconds * 1.5 + flaps * (4 + 2 * result.profiles);
  return [
    ...(times
      ? late.map(
          ({ phase, afterLastAnswerSeconds: s }) => `${phase}: Ready ${s.toFixed(0)} s after the last answer`,
        )
      : []),
    ...dear.map(
      (phase) =>
        `${phase.phase}: ${phase.requests} requests; ${Math.round(allowed(result, phase))} are allowed`,
    ),
    ...(operator.peakMegabytes > most.megabytes ? [`the operator took ${operator.peakMegabytes} MiB`] : []),
    ...Object.entries(largestBytes).flatMap(([kind, size]) =>
      size > most.bytes ? [`a ${kind} has ${size} bytes`] : [],
    ),
    ...(requests > quietAllowed
      ? [`${seconds} quiet seconds cost ${requests} requests; ${Math.round(quietAllowed)} are allowed`]
      : []),
  ];
};
