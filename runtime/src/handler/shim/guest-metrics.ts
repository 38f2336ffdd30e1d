import { request } from "node:http";
import { join } from "node:path";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/**
 * What Kata counts of a pod's guest, agent, hypervisor and shim, from the socket that its shim serves it on (as
 * kata-monitor reads it), carried on with the pod's labels. What comes is a tenant's guest's to say in part: so names,
 * lines and bytes are bounded, and a line that does not read as a sample is dropped.
 */

type Kata = NonNullable<ShimHandlerConfig["kata"]>;
export type PodLabels = { pod: string; namespace: string; handler: string };
export type PodMetrics = { labels: PodLabels; text: string };

/** Of one pod. */
const maxBytes = 256 << 10;
const maxSamples = 1000;

/** Where a pod's shim serves its metrics. `root` is / but in tests. */
export const monitorSocket = (kata: Pick<Kata, "runtime">, podId: string, root = "/"): string =>
  join(root, kata.runtime === "rust" ? "run/kata" : "run/vc/sbs", podId, "shim-monitor.sock");

/** GET /metrics on a Unix socket. Refuses more than 256 KiB. */
export const readMetrics = (socketPath: string, signal: AbortSignal): Promise<string> =>
  new Promise((resolve, reject) => {
    const get = request({ socketPath, path: "/metrics", headers: { host: "shim" }, signal }, (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (chunk: string) => {
        text += chunk;
        if (text.length > maxBytes)
          response.destroy(
            new RuntimeError("resource-exhausted", `${socketPath} says more than ${maxBytes} bytes`),
          );
      });
      response.on("error", reject);
      response.on("end", () =>
        response.statusCode === 200
          ? resolve(text)
          : reject(new RuntimeError("unavailable", `${socketPath} answers ${response.statusCode}`)),
      );
    });
    get.on("error", reject);
    get.end();
  });

const sample = /^(kata_[a-z0-9_]+)(?:\{([^{}]*)\})? (-?[0-9.e+-]+|NaN|[+-]Inf)(?: [0-9]+)?$/i;
/**
 * How long each call of the shim's and the agent's took, by a dozen buckets each: of the older shim they are the most of
 * what it says, and come before what it knows of the guest. Their sums and counts are kept.
 */
const bucket = /^kata_[a-z0-9_]+_bucket\{/i;
const type = /^# TYPE (kata_[a-z0-9_]+) (counter|gauge|histogram|summary|untyped)$/;

const quoted = (text: string): string =>
  `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n")}"`;

/** One text of all pods: each family once, each sample with its pod's labels before its own. */
export const mergeMetrics = (pods: readonly PodMetrics[]): string => {
  const families = new Map<string, { type: string | undefined; samples: string[] }>();
  const familyOf = (name: string) => {
    const family = families.get(name) ?? { type: undefined, samples: [] };
    families.set(name, family);
    return family;
  };
  for (const { labels, text } of pods) {
    const own = Object.entries(labels).map(([key, value]) => `${key}=${quoted(value)}`);
    let samples = 0;
    let current = "";
    for (const line of text.split("\n")) {
      if (bucket.test(line)) continue;
      const typed = type.exec(line);
      if (typed) {
        current = typed[1] ?? "";
        // Without its buckets a histogram is what a summary without quantiles is.
        familyOf(current).type ??= typed[2] === "histogram" ? "summary" : typed[2];
        continue;
      }
      const found = sample.exec(line.trim());
      if (!found || samples >= maxSamples) continue;
      const [, name = "", inner = "", value = ""] = found;
      samples++;
      // A histogram's samples have names of their own behind their family's.
      const family = name.startsWith(current) && current !== "" ? current : name;
      const all = [...own, ...(inner === "" ? [] : [inner.replace(/,$/, "")])].join(",");
      familyOf(family).samples.push(`${name}{${all}} ${value}`);
    }
  }
  return [...families]
    .filter(([, { samples }]) => samples.length > 0)
    .flatMap(([name, { type: kind, samples }]) => [
      ...(kind === undefined ? [] : [`# TYPE ${name} ${kind}`]),
      ...samples,
      "",
    ])
    .join("\n");
};

/** Pods of which metrics are asked at a time, all that one answer takes, in milliseconds: the node agent waits for three seconds. */
const maxPods = 128;
const deadlineMs = 1_500;

/** The metrics of these pods as one text; a pod that does not answer in time has none. */
export const collectMetrics = async (
  pods: readonly { labels: PodLabels; socket: string }[],
): Promise<string> => {
  const signal = AbortSignal.timeout(deadlineMs);
  const read = await Promise.all(
    pods.slice(0, maxPods).map(async ({ labels, socket }) => {
      const text = await readMetrics(socket, signal).catch(() => "");
      return { labels, text };
    }),
  );
  return mergeMetrics(read);
};
