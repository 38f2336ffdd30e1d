import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type Gvisor,
  runscFlags,
  runscSettings,
  tenantAnnotations,
} from "../../node-agent/src/installer/gvisor.ts";
import { tool } from "../tools/cache.ts";

/** gVisor as the node agent sets it up for a profile: its shim with a configuration file, written into `dir`. */
export const gvisorHandler = async (
  dir: string,
  root: string,
  { name = "gvisor", ...profile }: Partial<Gvisor> & { name?: string } = {},
): Promise<object> => {
  const gvisor: Gvisor = { platform: "systrap", network: "sandbox", overlay: "memory", ...profile };
  const platform = gvisor.platform === "auto" ? "systrap" : gvisor.platform;
  const configPath = join(dir, `${name}.toml`);
  const overlays = join(dir, "overlays");
  // A JSON string is a TOML string.
  const flags = Object.entries(runscFlags(gvisor, platform, overlays)).map(
    ([flag, value]) => `"${flag}" = ${JSON.stringify(value)}\n`,
  );
  await writeFile(
    configPath,
    `binary_name = "${tool("runsc")}"\nroot = "${root}"\n\n[runsc_config]\n${flags.join("")}`,
  );
  return {
    kind: "shim",
    name,
    binary: tool("containerd-shim-runsc-v1"),
    optionsTypeUrl: "io.containerd.runsc.v1.options",
    configPath,
    wall: "kernel",
    allowedAnnotations: tenantAnnotations(gvisor),
    runsc: { binary: tool("runsc"), root, ...runscSettings(gvisor, overlays) },
  };
};

/** runc behind containerd's own shim: any other shim that keeps to the protocol is driven the same way. */
export const shimHandler = (): object => ({
  kind: "shim",
  name: "shim",
  binary: tool("containerd-shim-runc-v2"),
  optionsTypeUrl: "containerd.runc.v1.Options",
  wall: "namespaces",
});
