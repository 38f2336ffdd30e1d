import { type Random, randomOf } from "./random.ts";

/** What a container's program does: end by itself, end when asked, or stay until it is killed. */
export type Program = { kind: "ends" | "asked" | "stays"; code: number; seconds: number };

/** One thing that an actor does, after a pause. `cancel`: gives the call up after so long. `twice`: asks twice at once. */
export type Step = { pause: number; cancel?: number; twice?: true } & (
  | { do: "container"; program: Program }
  | { do: "exec"; code: number }
  | { do: "stop"; grace: number }
  | { do: "remove" }
  | { do: "look" }
  | { do: "pull" | "remove-image"; image: number }
  | { do: "replace-pod" }
);

/** Somebody who works on a pod of his own, step by step, as kubelet's worker for a pod does. */
export type Actor = { handler: "runc" | "gvisor"; sharedPid: boolean; hostPort: boolean; steps: Step[] };

/** Programs that the daemon starts, which may be killed at any time. */
export const victims = ["conmon", "runc", "cni", "holder", "program", "reaper", "shim", "sandbox"] as const;
export type Victim = (typeof victims)[number];

/** Something that goes wrong at `at`, for `lasts` milliseconds. */
export type Fault = { at: number; lasts: number } & (
  | { what: "daemon"; signal: "SIGKILL" | "SIGTERM" }
  | { what: "kill"; victim: Victim }
  | { what: "cni"; command: "ADD" | "DEL"; how: "fail" | "hang" | "garbage" }
  | { what: "runc"; command: "create" | "start" | "delete" | "exec"; how: "fail" | "hang" | "die" | "late" }
  | { what: "full"; where: "state" | "root" }
  | { what: "read-only" }
  | { what: "descriptors" }
  | { what: "registry" }
);

export type Round = { actors: Actor[]; faults: Fault[] };

/** The length of a round's work. */
const roundMs = 4_000;
/** Images that are pulled and removed; the containers' own is not among them. */
export const spareImages = 3;

const programOf = (random: Random): Program => ({
  kind: random.pick(["ends", "asked", "stays"] as const),
  code: random.int(0, 125),
  seconds: random.int(0, 15) / 10,
});

const stepOf = (random: Random): Step => {
  const how = {
    pause: random.chance(0.5) ? 0 : random.int(0, 400),
    ...(random.chance(0.12) ? { cancel: random.int(1, 400) } : {}),
    ...(random.chance(0.1) ? { twice: true as const } : {}),
  };
  const kind = random.int(0, 99);
  if (kind < 35) return { ...how, do: "container", program: programOf(random) };
  if (kind < 52) return { ...how, do: "exec", code: random.int(0, 125) };
  if (kind < 67) return { ...how, do: "stop", grace: random.pick([0, 1, 2]) };
  if (kind < 78) return { ...how, do: "remove" };
  if (kind < 83) return { ...how, do: "look" };
  if (kind < 90) return { ...how, do: "pull", image: random.int(0, spareImages - 1) };
  if (kind < 94) return { ...how, do: "remove-image", image: random.int(0, spareImages - 1) };
  return { ...how, do: "replace-pod" };
};

const faultOf = (random: Random): Fault => {
  const when = { at: random.int(100, roundMs - 300), lasts: random.int(100, 1_500) };
  const kind = random.int(0, 99);
  if (kind < 25) return { ...when, what: "daemon", signal: random.chance(0.85) ? "SIGKILL" : "SIGTERM" };
  if (kind < 55) return { ...when, what: "kill", victim: random.pick(victims) };
  if (kind < 67)
    return {
      ...when,
      what: "cni",
      command: random.pick(["ADD", "DEL"] as const),
      how: random.pick(["fail", "hang", "garbage"] as const),
    };
  if (kind < 82)
    return {
      ...when,
      what: "runc",
      command: random.pick(["create", "start", "delete", "exec"] as const),
      how: random.pick(["fail", "hang", "die", "late"] as const),
    };
  if (kind < 88) return { ...when, what: "full", where: random.pick(["state", "root"] as const) };
  if (kind < 92) return { ...when, what: "read-only" };
  if (kind < 96) return { ...when, what: "descriptors" };
  return { ...when, what: "registry" };
};

/** Round `number` of the run with this seed: some actors, one in eight with a pod of gVisor, and some faults. */
export const roundOf = (seed: number, number: number): Round => {
  const random = randomOf(Math.imul(seed, 0x9e3779b1) ^ Math.imul(number + 1, 0x85ebca6b));
  const actors = Array.from(
    { length: random.int(2, 5) },
    (): Actor => ({
      handler: random.chance(0.125) ? "gvisor" : "runc",
      sharedPid: random.chance(0.3),
      hostPort: random.chance(0.3),
      steps: Array.from({ length: random.int(5, 14) }, () => stepOf(random)),
    }),
  );
  const faults = Array.from({ length: random.int(1, 4) }, () => faultOf(random));
  return { actors, faults: faults.sort((a, b) => a.at - b.at) };
};

/** A fault in a few words. */
export const faultText = ({ at, lasts, ...fault }: Fault): string =>
  `${Object.values(fault).join(" ")} at ${at} ms for ${lasts} ms`;
