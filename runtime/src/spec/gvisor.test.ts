import { expect, test } from "vitest";
import { type GvisorFacts, gvisorSpec, pathsOf } from "./gvisor.ts";
import type { Mount, Spec } from "./oci.ts";

const facts: GvisorFacts = { masked: [], readonly: [], submounts: new Map(), emptyFile: "/state/empty" };
const bind = (destination: string, mode: string): Mount => ({
  destination,
  type: "bind",
  source: `/node${destination}`,
  options: ["rbind", "rprivate", mode],
});
const specOf = (...mounts: Mount[]): Spec => ({ ociVersion: "1.2.0", root: { path: "/root" }, mounts });
const shortOf = (spec: Spec): string[] =>
  spec.mounts.map(({ destination, source, options }) => `${destination} ${source} ${options?.join(",")}`);

test("pathsOf() leaves gVisor its own file systems", () => {
  expect(pathsOf(["/proc/kcore", "/sys/firmware", "/dev/x", "/proc", "/processes", "/tmp"])).toEqual([
    "/processes",
    "/tmp",
  ]);
  expect(pathsOf(undefined)).toEqual([]);
});

test("gvisorSpec() hides masked files behind an empty file and masked directories behind an empty file system", () => {
  const spec = gvisorSpec(specOf(), {
    ...facts,
    masked: [
      { path: "/etc/secret", source: "/root/etc/secret", kind: "directory" },
      { path: "/bin", source: "/root/bin", kind: "directory" },
      { path: "/bin/ls", source: "/root/bin/ls", kind: "file" },
    ],
  });
  expect(shortOf(spec)).toEqual([
    "/bin tmpfs ro,nosuid,noexec,nodev",
    "/etc/secret tmpfs ro,nosuid,noexec,nodev",
    "/bin/ls /state/empty rprivate,ro",
  ]);
});

test("gvisorSpec() mounts read-only paths on themselves, below masked ones in order", () => {
  const spec = gvisorSpec(specOf(bind("/data", "rw")), {
    ...facts,
    readonly: [{ path: "/data/logs", source: "/node/data/logs", kind: "directory" }],
    masked: [{ path: "/data/logs/key", source: "/node/data/logs/key", kind: "file" }],
  });
  expect(shortOf(spec)).toEqual([
    "/data /node/data rbind,rprivate,rw",
    "/data/logs /node/data/logs rbind,rprivate,ro",
    "/data/logs/key /state/empty rprivate,ro",
  ]);
});

test("gvisorSpec() keeps what is mounted below a read-only volume as writable as it is", () => {
  const submounts = new Map([
    [
      "/data",
      [
        { destination: "/data/rw", source: "/node/data/rw", readonly: false },
        { destination: "/data/ro", source: "/node/data/ro", readonly: true },
        { destination: "/data/own", source: "/node/data/own", readonly: false },
      ],
    ],
  ]);
  const spec = gvisorSpec(specOf(bind("/data", "ro"), bind("/data/own", "rw")), { ...facts, submounts });
  expect(shortOf(spec)).toEqual([
    "/data /node/data rbind,rprivate,ro",
    "/data/rw /node/data/rw rbind,rprivate,rw",
    "/data/ro /node/data/ro rbind,rprivate,ro",
    // What the pod asks for there wins.
    "/data/own /node/data/own rbind,rprivate,rw",
  ]);
});

test("gvisorSpec() says rro as ro, which gVisor means for all that is below", () => {
  expect(shortOf(gvisorSpec(specOf(bind("/data", "rro")), facts))).toEqual([
    "/data /node/data rbind,rprivate,ro",
  ]);
});
