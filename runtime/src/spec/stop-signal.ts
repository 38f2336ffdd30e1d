import { Signal } from "@bulkhead/lib/gen/cri_pb.js";

/** Signal numbers of Linux on x86 and ARM. */
const numbers: Record<string, number> = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGQUIT: 3,
  SIGILL: 4,
  SIGTRAP: 5,
  SIGABRT: 6,
  SIGIOT: 6,
  SIGBUS: 7,
  SIGFPE: 8,
  SIGKILL: 9,
  SIGUSR1: 10,
  SIGSEGV: 11,
  SIGUSR2: 12,
  SIGPIPE: 13,
  SIGALRM: 14,
  SIGTERM: 15,
  SIGSTKFLT: 16,
  SIGCHLD: 17,
  SIGCLD: 17,
  SIGCONT: 18,
  SIGSTOP: 19,
  SIGTSTP: 20,
  SIGTTIN: 21,
  SIGTTOU: 22,
  SIGURG: 23,
  SIGXCPU: 24,
  SIGXFSZ: 25,
  SIGVTALRM: 26,
  SIGPROF: 27,
  SIGWINCH: 28,
  SIGIO: 29,
  SIGPOLL: 29,
  SIGPWR: 30,
  SIGSYS: 31,
  SIGRTMIN: 34,
  SIGRTMAX: 64,
};

/** Number of a signal written as SIGTERM, TERM, SIGRTMIN+3, SIGRTMAX-1 or 15; undefined when it is none. */
export const signalNumber = (text: string): number | undefined => {
  if (/^[0-9]{1,2}$/.test(text)) {
    const number = Number(text);
    return number >= 1 && number <= 64 ? number : undefined;
  }
  const upper = text.toUpperCase();
  const name = upper.startsWith("SIG") ? upper : `SIG${upper}`;
  const realTime = /^(SIGRTMIN|SIGRTMAX)([+-])([0-9]{1,2})$/.exec(name);
  if (!realTime) return numbers[name];
  const [, base = "", sign, offset] = realTime;
  const number = (numbers[base] ?? 0) + (sign === "+" ? 1 : -1) * Number(offset);
  return number >= 34 && number <= 64 ? number : undefined;
};

/** CRI's enumeration spells SIGRTMIN+3 as RTMINPLUS3. */
const criName = (signal: Signal): string =>
  (Signal[signal] ?? "")
    .replace(/^SIGNAL_/, "")
    .replace("PLUS", "+")
    .replace("MINUS", "-");

/** The signal that asks a container to stop: CRI's, then the image's, then SIGTERM. */
export const stopSignalOf = (cri: Signal, image: string): number =>
  (cri === Signal.RUNTIME_DEFAULT ? undefined : signalNumber(criName(cri))) ?? signalNumber(image) ?? 15;

/** The same as CRI's enumeration, for ContainerStatus. */
export const criStopSignal = (number: number): Signal => {
  for (const value of Object.values(Signal))
    if (
      typeof value === "number" &&
      value !== Signal.RUNTIME_DEFAULT &&
      signalNumber(criName(value)) === number
    )
      return value;
  return Signal.RUNTIME_DEFAULT;
};
