import { readdir } from "node:fs/promises";
import { outcome, run } from "./run.ts";

/** Installs the Debian packages that are missing. */
export const installPackages = async (packages: readonly string[], signal?: AbortSignal): Promise<void> => {
  // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query's own placeholders
  const { stdout } = await outcome(["dpkg-query", "-W", "-f=${Package} ${db:Status-Status}\\n", ...packages]);
  const installed = new Set(
    stdout
      .split("\n")
      .filter((line) => line.endsWith(" installed"))
      .map((line) => line.split(" ")[0]),
  );
  const missing = packages.filter((name) => !installed.has(name));
  // Without lists nothing can be downloaded later on either.
  const lists = (await readdir("/var/lib/apt/lists").catch(() => [])).some((name) =>
    name.includes("_Packages"),
  );
  if (missing.length === 0 && lists) return;
  await run(["apt-get", "update", "-q"], { signal });
  if (missing.length > 0)
    await run(["apt-get", "install", "-q", "-y", "--no-install-recommends", ...missing], {
      signal,
      env: { DEBIAN_FRONTEND: "noninteractive" },
    });
};
