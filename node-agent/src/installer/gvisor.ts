import { join } from "node:path";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { parseQuantity } from "@bulkhead/lib/std/quantity.ts";

/** What a profile of gVisor says, in runsc's words. Pure. */

export type Gvisor = NonNullable<DesiredProfile["handler"]["gvisor"]>;

/** How the sentry intercepts system calls, once it is chosen. */
export const platforms = ["systrap", "kvm", "ptrace"] as const;
export type Platform = (typeof platforms)[number];

/** Where overlay files of `overlay: directory` are; deleted as they are made, so that nobody can open one. */
const overlays = join(paths.root, "gvisor");

/** All flags that gVisor is started with. What has a field of its own comes last, so that no flag can unsay it. */
export const runscFlags = (
  gvisor: Gvisor,
  platform: Platform,
  overlayDirectory = overlays,
): Record<string, string> => ({
  ...asThePodSays,
  ...flagsTable(gvisor.flags ?? []),
  ...nvproxyFlags(gvisor.nvproxy),
  overlay2: overlayOf(gvisor, overlayDirectory),
  network: gvisor.network,
  platform,
});

/** The handler's settings that the runtime reads; the rest stands in the shim's own file. */
export const runscSettings = (
  gvisor: Gvisor,
  overlayDirectory = overlays,
): Pick<
  NonNullable<ShimHandlerConfig["runsc"]>,
  "network" | "emptyDir" | "nvproxy" | "overlayDirectory"
> => ({
  network: gvisor.network,
  emptyDir: gvisor.emptyDir ?? "node",
  nvproxy: gvisor.nvproxy !== undefined,
  ...(gvisor.overlay === "directory" ? { overlayDirectory } : {}),
});

/** Annotations that a pod of the profile may pass, as globs. */
export const tenantAnnotations = ({ tenant }: Gvisor): string[] => [
  ...(tenant?.flags ?? []).map((flag) => `dev.gvisor.flag.${flag}`),
  ...(tenant?.volumeHints === true ? ["dev.gvisor.spec.mount.*", "dev.gvisor.empty-dir.*"] : []),
];

/**
 * What runsc leaves out unless it is told: a container's seccomp profile, and setuid programs, which
 * allowPrivilegeEscalation is there to forbid. A profile's flags can say otherwise.
 */
const asThePodSays = { "oci-seccomp": "true", "allow-suid": "true" };

const overlayOf = ({ overlay, overlayScope = "root", overlaySize }: Gvisor, directory: string): string => {
  if (overlay === "none") return "none";
  const medium = overlay === "directory" ? `dir=${directory}` : overlay;
  return `${overlayScope}:${medium}${overlaySize === undefined ? "" : `,size=${bytesOf(overlaySize)}`}`;
};

/** Whole bytes of a Kubernetes quantity. */
const bytesOf = (quantity: string): number => Math.ceil(parseQuantity(quantity) ?? 0);

const nvproxyFlags = (nvproxy: Gvisor["nvproxy"]): Record<string, string> =>
  nvproxy === undefined
    ? {}
    : {
        nvproxy: "true",
        ...(nvproxy.driverVersion === undefined ? {} : { "nvproxy-driver-version": nvproxy.driverVersion }),
        ...(nvproxy.capabilities === undefined
          ? {}
          : { "nvproxy-allowed-driver-capabilities": nvproxy.capabilities.join(",") }),
      };

/** --name=value and --name as keys of runsc_config, which takes strings. */
const flagsTable = (flags: string[]): Record<string, string> =>
  Object.fromEntries(
    flags.map((flag) => {
      const [name = "", ...value] = flag.replace(/^--/, "").split("=");
      return [name, value.length > 0 ? value.join("=") : "true"];
    }),
  );
