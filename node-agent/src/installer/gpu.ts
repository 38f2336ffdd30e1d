import { readFile } from "node:fs/promises";
import type { Gvisor } from "./gvisor.ts";
import type { Host } from "./host.ts";

/**
 * Tells why the GPUs of a profile of gVisor cannot be had on this node, or undefined. gVisor speaks to few versions of
 * NVIDIA's driver; a sandbox that is to speak to another ends before it says so. Each `runsc` is asked for them once. One
 * that cannot answer, because it is not in place or too old for the question, is left to the profile's canary.
 */
export const createGpuCheck = (host: Pick<Host, "at" | "run">) => {
  const driversOf = new Map<string, readonly string[]>();

  const drivers = async (runsc: string, signal: AbortSignal): Promise<readonly string[] | undefined> => {
    const known = driversOf.get(runsc);
    if (known !== undefined) return known;
    try {
      const { code, stdout } = await host.run([runsc, "nvproxy", "list-supported-drivers"], { signal });
      if (code !== 0) return undefined;
      const told = stdout.trim().split("\n");
      driversOf.set(runsc, told);
      return told;
    } catch {
      signal.throwIfAborted();
      return undefined;
    }
  };

  return async (
    runsc: string,
    { nvproxy, flags }: Pick<Gvisor, "nvproxy" | "flags">,
    signal: AbortSignal,
  ): Promise<string | undefined> => {
    if (nvproxy === undefined || nvproxy.driverVersion === "latest") return undefined;
    const version =
      nvproxy.driverVersion ??
      (await readFile(host.at("/sys/module/nvidia/version"), "utf8").catch(() => "")).trim();
    if (version === "")
      return "Cannot offer GPUs: no NVIDIA driver is loaded on this node, and nvproxy.driverVersion names none";
    if (flags?.some((flag) => flag.startsWith("--nvproxy-allow-unsupported-driver"))) return undefined;
    const known = await drivers(runsc, signal);
    return known === undefined || known.includes(version)
      ? undefined
      : `Cannot offer GPUs: gVisor does not speak to NVIDIA's driver ${version}, but to ${known.join(", ")}`;
  };
};
