import {
  faultOf,
  type NodeRuntimeStatus,
  type ProfileStatus,
  serves,
} from "@bulkhead/lib/api/node-runtime.ts";
import { type Happening, isThrough, type Report } from "../protocol.ts";

/** From the installer's report to NodeRuntime.status. Pure. */

/** How old the status may get: a reader tells a silent agent from a quiet node by it. */
export const heartbeatMs = 30_000;

/** How old what no plan asks for may get: when a canary passed last, and how fast. */
export const detailsMs = 300_000;

/** The report with since when each profile serves, by what was written last, be it by an agent before this one. */
export const withReadySince = (
  report: Report["status"],
  before: readonly ProfileStatus[] | undefined,
  now: number,
): Report["status"] =>
  report.profiles === undefined
    ? report
    : {
        ...report,
        profiles: report.profiles.map((profile) => {
          if (!serves(profile)) return profile;
          const was = before?.find(({ name }) => name === profile.name);
          const lasts = serves(was) && was?.revision === profile.revision;
          return { ...profile, readySince: (lasts ? was?.readySince : undefined) ?? timeText(now) };
        }),
      };

/** As metav1.Time has it: whole seconds. */
const timeText = (ms: number): string => new Date(ms).toISOString().replace(/\.\d+Z$/, "Z");

/** Without what changes with every canary that passes again. */
const gist = ({ heartbeat: _, ...status }: NodeRuntimeStatus): string =>
  JSON.stringify({
    ...status,
    profiles: status.profiles?.map(({ startSeconds: _starts, canary, ...profile }) => ({
      ...profile,
      ...(canary ? { canary: { ...canary, at: "", startSeconds: 0, overheadBytes: 0 } } : {}),
    })),
  });

/** What was written last does not say it, but for times and latencies. */
export const isNews = (
  report: Report["status"],
  agentVersion: string,
  last: { status: NodeRuntimeStatus } | undefined,
): boolean => last === undefined || gist({ ...report, agentVersion }) !== gist(last.status);

/** Whether so long has passed; after a clock was set back nobody knows, and it has. */
export const isDue = (at: number, ms: number, now: number): boolean => now < at || now - at >= ms;

/**
 * The status to write, or undefined when the last one written still says it all. Heartbeats come every
 * {@link heartbeatMs}, unless the node's Lease is the sign of life: then the status is written for what is news, and
 * latencies come every {@link detailsMs}.
 */
export function statusToWrite(
  report: Report["status"],
  agentVersion: string,
  last: { status: NodeRuntimeStatus; at: number } | undefined,
  now: number,
  signed = false,
): NodeRuntimeStatus | undefined {
  const status = { ...report, agentVersion };
  const writing = { ...status, heartbeat: timeText(now) };
  if (last === undefined || isNews(report, agentVersion, last)) return writing;
  if (!signed) return isDue(last.at, heartbeatMs, now) ? writing : undefined;
  const { heartbeat: _, ...before } = last.status;
  return isDue(last.at, detailsMs, now) && JSON.stringify(status) !== JSON.stringify(before)
    ? writing
    : undefined;
}

/**
 * The agent has done what was wanted when it began, and what served before serves under it. Until then its pod is not
 * ready, so that a version that fails comes to no further node.
 */
export function isSettled(status: Report["status"], generation: number): boolean {
  return isThrough(status, generation) && !faultOf(status);
}

/** What happened since `seen`, for Events. Another life of the installer starts counting anew. */
export function newHappenings(
  report: Pick<Report, "instance" | "happenings">,
  seen: { instance: string; seq: number } | undefined,
): Happening[] {
  return seen?.instance === report.instance
    ? report.happenings.filter(({ seq }) => seq > seen.seq)
    : report.happenings;
}

/** The text of an Event: the profile first, so that `kubectl get events` reads as a story. */
export const noteOf = ({ profile, message }: Pick<Happening, "profile" | "message">): string =>
  profile === undefined ? message : `${profile}: ${message}`;
