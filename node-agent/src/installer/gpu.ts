import { readFile } from "node:fs/promises";
import type { Gvisor } from "./gvisor.ts";
import { type Host, must } from "./host.ts";

/**
 * Why the GPUs of a profile of gVisor cannot be had on this node, or undefined. gVisor speaks to few versions of NVIDIA's
 * driver; a sandbox that is to speak to another ends before it says so.
 */
export async function noGpu(
  host: Pick<Host, "at" | "run">,
  runsc: string,
  { nvproxy, flags }: Pick<Gvisor, "nvproxy" | "flags">,
  signal: AbortSignal,
): Promise<string | undefined> {
  if (nvproxy === undefined || nvproxy.driverVersion === "latest") return undefined;
  const version =
    nvproxy.driverVersion ??
    (await readFile(host.at("/sys/module/nvidia/version"), "utf8").catch(() => "")).trim();
  if (version === "")
    return "Cannot offer GPUs: no NVIDIA driver is loaded on this node, and nvproxy.driverVersion names none";
  if (flags?.some((flag) => flag.startsWith("--nvproxy-allow-unsupported-driver"))) return undefined;
  const told = await must(
    host.run([runsc, "nvproxy", "list-supported-drivers"], { signal }),
    "Cannot ask gVisor for the drivers that it speaks to",
  );
  const known = told.trim().split("\n");
  return known.includes(version)
    ? undefined
    : `Cannot offer GPUs: gVisor does not speak to NVIDIA's driver ${version}, but to ${known.join(", ")}`;
}
