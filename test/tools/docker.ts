import { inCache } from "./cache.ts";
import { fetchTrixie } from "./trixie.ts";

/** The engine and its client; containerd and runc of Debian 12 do. cri-dockerd wants Docker 23, and Debian 12 has 20.10. */
const packages = ["docker.io", "docker-cli"];

/** A root file system with Debian 13's Docker. */
export const dockerHome = (): string => inCache("tools", "docker-trixie");

/** Fetches Docker from Debian's archive, unless it is there. */
export const fetchDocker = (signal?: AbortSignal): Promise<void> =>
  fetchTrixie(dockerHome(), packages, () => Promise.resolve(), signal);
