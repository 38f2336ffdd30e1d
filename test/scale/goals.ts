/** What a simulation measured. */
export type Phase = {
  phase: string;
  writtenSeconds: number;
  readySeconds: number;
  afterLastAnswerSeconds: number;
  /** The operator's, of all kinds, and those that write. */
  requests: number;
  writes: number;
  /** Of these, those to Nodes and NodeRuntimes. */
  nodeWrites: number;
  /** What they may be for each node. */
  nodeWritesGoal: number;
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
  /** What is not for a node: statuses, at ten a second, Events, histories and classes of profiles, the Lease. */
  othersPerSecond: 11,
  othersPerProfile: 20,
};

/** The goals that were missed, in words. Without `times`, what a busy machine cannot change. */
export const missed = (result: Result, times: boolean): string[] => {
  const { phases, quiet, operator, largestBytes } = result;
  const { seconds, requests, flaps } = quiet;
  const late = phases.filter((phase) => phase.afterLastAnswerSeconds > most.secondsAfterLastAnswer);
  const { nodes, profiles } = result;
  const dear = phases.flatMap(({ phase, requests: all, nodeWrites, nodeWritesGoal, readySeconds }) => {
    const others = readySeconds * most.othersPerSecond + profiles * most.othersPerProfile;
    return [
      ...(nodeWrites > nodes * nodeWritesGoal
        ? [`${phase}: ${nodeWrites} writes to ${nodes} nodes; ${nodeWritesGoal} are allowed for each`]
        : []),
      ...(all - nodeWrites > others
        ? [`${phase}: ${all - nodeWrites} other requests; ${Math.round(others)} are allowed`]
        : []),
    ];
  });
  // The Lease's, which is read and written every two seconds, watches that end, and what a node that flaps asks for: of each
  // profile the status twice and an Event.
  const quietAllowed = 10 + seconds * 1.5 + flaps * (4 + 3 * result.profiles);
  return [
    ...(times
      ? late.map(
          ({ phase, afterLastAnswerSeconds: s }) => `${phase}: Ready ${s.toFixed(0)} s after the last answer`,
        )
      : []),
    ...dear,
    ...(operator.peakMegabytes >= most.megabytes ? [`the operator took ${operator.peakMegabytes} MiB`] : []),
    ...Object.entries(largestBytes).flatMap(([kind, size]) =>
      size > most.bytes ? [`a ${kind} has ${size} bytes`] : [],
    ),
    ...(requests > quietAllowed
      ? [`${seconds} quiet seconds cost ${requests} requests; ${Math.round(quietAllowed)} are allowed`]
      : []),
  ];
};
