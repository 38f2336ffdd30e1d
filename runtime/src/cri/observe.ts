import type { Message } from "@bufbuild/protobuf";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import type { Logger } from "pino";
import { trimWhenQuiet } from "../memory.ts";
import type { Metrics } from "../metrics.ts";
import type { Observer } from "./server.ts";
import { isFailure, statusName } from "./status.ts";

const routine =
  /^(List|Stream|Status|Version|ImageStatus|ImageFsInfo|ContainerStat|PodSandboxStat|RuntimeConfig)/;

/** Asked every second by kubelet; logged only at level debug unless they fail. */
export const isRoutine = (method: string): boolean => routine.test(method);

/** One line per call, and its count and time. */
export const observer =
  (log: Logger, metrics: Pick<Metrics, "calls" | "callSeconds">): Observer =>
  ({ method, request, response, code, error, ms }) => {
    const name = statusName(code);
    if (!isRoutine(method)) trimWhenQuiet();
    metrics.calls.inc({ method, code: name });
    metrics.callSeconds.observe({ method }, ms / 1000);
    const level = isFailure(code) ? "warn" : isRoutine(method) ? "debug" : "info";
    if (!log.isLevelEnabled(level)) return;
    const fields = {
      method,
      code: name,
      ms: Math.round(ms * 10) / 10,
      ...idsOf(request),
      ...idsOf(response),
    };
    log[level](level === "warn" ? { ...fields, error: messageOf(error) } : fields, "rpc");
  };

/** What a message is about, as far as its fields say. */
const idsOf = (message: Message | undefined): Record<string, string> => {
  if (message === undefined) return {};
  const fields = message as unknown as Record<string, unknown>;
  const ids: Record<string, string> = {};
  if (typeof fields.podSandboxId === "string") ids.pod = fields.podSandboxId.slice(0, 13);
  if (typeof fields.containerId === "string") ids.container = fields.containerId.slice(0, 13);
  if (typeof fields.runtimeHandler === "string" && fields.runtimeHandler !== "")
    ids.handler = fields.runtimeHandler;
  const image = fields.image as { image?: unknown } | undefined;
  if (typeof image?.image === "string") ids.image = image.image;
  const metadata = (fields.config as { metadata?: { name?: unknown; namespace?: unknown } } | undefined)
    ?.metadata;
  if (typeof metadata?.name === "string")
    ids.name =
      typeof metadata.namespace === "string" ? `${metadata.namespace}/${metadata.name}` : metadata.name;
  return ids;
};
