import { Counter, Gauge, Histogram, type Registry } from "prom-client";

export type InstallerMetrics = {
  ready: Gauge<"profile">;
  passed(profile: string, seconds: number): void;
  failed(profile: string): void;
  /** Failed canaries of a profile in this life of the installer. */
  failures(profile: string): number;
  forget(profile: string): void;
  artifact: {
    /** Files of all artifacts that are not what they were when they came. */
    changed(files: number): void;
    ended(work: "fetch" | "verify" | "repair", result: "done" | "failed"): void;
  };
};

export function installerMetrics(registry: Registry): InstallerMetrics {
  const registers = [registry];
  const labelNames = ["profile"] as const;
  const ready = new Gauge({
    name: "bulkhead_handler_ready",
    help: "1 while the profile's handler serves on this node and its last canary passed",
    labelNames,
    registers,
  });
  const seconds = new Histogram({
    name: "bulkhead_canary_start_seconds",
    help: "Time from RunPodSandbox to the canary's container running",
    labelNames,
    buckets: [0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30],
    registers,
  });
  const runs = new Counter({
    name: "bulkhead_canaries_total",
    help: "Canaries by result",
    labelNames: ["profile", "result"] as const,
    registers,
  });
  const changedFiles = new Gauge({
    name: "bulkhead_artifact_changed_files",
    help: "Files of artifacts on this node that are not what they were when they came",
    registers,
  });
  const works = new Counter({
    name: "bulkhead_artifact_works_total",
    help: "Artifacts fetched, verified and put right, by result",
    labelNames: ["work", "result"] as const,
    registers,
  });
  for (const work of ["fetch", "verify", "repair"] as const)
    for (const result of ["done", "failed"] as const) works.inc({ work, result }, 0);
  const failures = new Map<string, number>();
  return {
    ready,
    passed: (profile, taken) => {
      seconds.observe({ profile }, taken);
      runs.inc({ profile, result: "passed" });
      runs.inc({ profile, result: "failed" }, 0);
    },
    failed: (profile) => {
      failures.set(profile, (failures.get(profile) ?? 0) + 1);
      runs.inc({ profile, result: "failed" });
    },
    failures: (profile) => failures.get(profile) ?? 0,
    forget: (profile) => {
      ready.remove({ profile });
      failures.delete(profile);
    },
    artifact: {
      changed: (files) => changedFiles.set(files),
      ended: (work, result) => works.inc({ work, result }),
    },
  };
}
