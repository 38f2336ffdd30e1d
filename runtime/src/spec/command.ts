import type { ContainerConfig } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { ImageConfig } from "../image/images.ts";

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** The pod's words win over the image's: `command` replaces entrypoint and cmd, `args` alone replaces cmd. */
export const argsOf = (
  config: Pick<ContainerConfig, "command" | "args">,
  image: Pick<ImageConfig, "entrypoint" | "cmd">,
): string[] => {
  const args =
    config.command.length > 0
      ? [...config.command, ...config.args]
      : [...image.entrypoint, ...(config.args.length > 0 ? config.args : image.cmd)];
  if (args.length === 0)
    throw new RuntimeError(
      "invalid-argument",
      "Cannot create the container: neither the pod nor the image names a command",
    );
  return args;
};

/** Environment: runtime's own, then the image's, then the pod's; the last one of a name wins. */
export const envOf = (
  config: Pick<ContainerConfig, "envs" | "tty">,
  image: Pick<ImageConfig, "env">,
  hostname: string,
): string[] => {
  // A mark at the beginning is part of the value.
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const env = new Map<string, string>();
  const set = (entry: string): void => {
    const at = entry.indexOf("=");
    env.set(at < 0 ? entry : entry.slice(0, at), entry);
  };
  set(defaultPath);
  if (hostname !== "") set(`HOSTNAME=${hostname}`);
  if (config.tty) set("TERM=xterm");
  for (const entry of image.env) set(entry);
  for (const { key, value } of config.envs) {
    const text = decoder.decode(value);
    if (key === "" || key.includes("=") || key.includes("\0") || text.includes("\0"))
      throw new RuntimeError(
        "invalid-argument",
        `Cannot set environment variable "${key}": bad name or value`,
      );
    set(`${key}=${text}`);
  }
  return [...env.values()];
};

export const cwdOf = (
  config: Pick<ContainerConfig, "workingDir">,
  image: Pick<ImageConfig, "workingDir">,
): string => {
  const cwd = config.workingDir || image.workingDir || "/";
  return cwd.startsWith("/") ? cwd : `/${cwd}`;
};
