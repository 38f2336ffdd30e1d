import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { tool } from "../tools/cache.ts";

/** gVisor as the node agent sets it up for a profile: its shim with a configuration file, written into `dir`. */
export const gvisorHandler = async (dir: string, root: string): Promise<object> => {
  const configPath = join(dir, "runsc.toml");
  const flags = ['platform = "systrap"', 'oci-seccomp = "true"', 'allow-suid = "true"'];
  await writeFile(
    configPath,
    `binary_name = "${tool("runsc")}"\nroot = "${root}"\n\n[runsc_config]\n${flags.join("\n")}\n`,
  );
  return {
    kind: "shim",
    name: "gvisor",
    binary: tool("containerd-shim-runsc-v1"),
    optionsTypeUrl: "io.containerd.runsc.v1.options",
    configPath,
    wall: "kernel",
    runsc: { binary: tool("runsc"), root },
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
