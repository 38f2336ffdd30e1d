import { spawnSync } from "node:child_process";

/**
 * `npm run ok`: everything that needs neither root nor a cluster, in the order in which it is cheapest to fail.
 * Every step runs even when one before it failed, so that one run shows all there is to mend.
 */
const steps: [name: string, ...command: string[]][] = [
  ["generated files are up to date", "node", "test/dev/generate.ts", "--check"],
  ["format and lint", "biome", "check", "--error-on-warnings", "."],
  ["types", "tsc"],
  [
    "layers",
    "depcruise",
    "--config",
    ".dependency-cruiser.cjs",
    "lib",
    "operator",
    "node-agent",
    "runtime",
    "kubectl",
    "test",
  ],
  ["dead code", "knip"],
  ["unit tests", "vitest", "run", "--project", "unit"],
];

// `./dev test` runs and counts the tests itself.
if (process.argv.includes("--without-tests")) steps.pop();

let failed = 0;
for (const [name, command = "", ...args] of steps) {
  const started = performance.now();
  const { status, error } = spawnSync(command, args, {
    stdio: "inherit",
    env: { ...process.env, PATH: `${process.cwd()}/node_modules/.bin:${process.env.PATH}` },
  });
  if (status !== 0) failed++;
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  process.stdout.write(
    `${status === 0 ? "ok" : "FAILED"}: ${name} (${seconds} s)${error ? `: ${error.message}` : ""}\n`,
  );
}
process.exit(failed === 0 ? 0 : 1);
