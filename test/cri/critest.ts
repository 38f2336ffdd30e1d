import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { unmountBelow } from "../cluster/mounts.ts";
import { ensureTestImages } from "../images/build.ts";
import { startRegistry } from "../images/registry.ts";
import { inCache, tool } from "../tools/cache.ts";
import { outcome } from "../tools/run.ts";
import { createDaemon, type Daemon } from "./daemon.ts";

/** Registries that the images of critest and of Kubernetes' end-to-end suite are named by. */
export const mirroredHosts = [
  "registry.k8s.io",
  "gcr.io",
  "k8s.gcr.io",
  "docker.io",
  "quay.io",
  "public.ecr.aws",
] as const;

/** critest and its flags that lead it to the socket; `--parallel` runs `ginkgo`, of the version that it was built with. */
export const critestCommand = (
  socket: string,
  args: readonly string[],
): { argv: [string, ...string[]]; env: { PATH: string } } => {
  const endpoint = `unix://${socket}`;
  return {
    argv: [
      tool("critest"),
      ...["--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--ginkgo.no-color"],
      ...args,
    ],
    env: { PATH: `${inCache("bin/critest-parallel")}:${process.env.PATH ?? ""}` },
  };
};

/** One spec of a run: what Ginkgo says of it. */
export type Spec = { name: string; state: string; message: string };

type Report = {
  SpecReports: {
    State: string;
    LeafNodeType: string;
    LeafNodeText: string;
    ContainerHierarchyTexts?: string[] | null;
    Failure?: { Message?: string };
  }[];
}[];

/** Runs critest against the daemon and reads its report. It needs the host's ports 12000 to 12003. */
export const critestOn = async (daemon: Pick<Daemon, "socket">, args: readonly string[]): Promise<Spec[]> => {
  const scratch = await mkdtemp(join(tmpdir(), "bh-critest-"));
  try {
    const report = join(scratch, "report.json");
    const { argv, env } = critestCommand(daemon.socket, [`--ginkgo.json-report=${report}`, ...args]);
    const said = await outcome(argv, { cwd: scratch, env: { ...env, TMPDIR: scratch } });
    const text = await readFile(report, "utf8").catch(() => {
      throw new Error(`critest made no report:\n${`${said.stdout}${said.stderr}`.slice(-4000)}`);
    });
    return (JSON.parse(text) as Report)
      .flatMap((suite) => suite.SpecReports)
      .filter(({ LeafNodeType }) => LeafNodeType === "It")
      .map((each) => ({
        name: [...(each.ContainerHierarchyTexts ?? []), each.LeafNodeText].join(" "),
        state: each.State,
        message: each.Failure?.Message ?? "",
      }));
  } finally {
    // Of what its specs mount there it leaves some.
    await unmountBelow(scratch);
    await rm(scratch, { recursive: true, force: true });
  }
};

/** A daemon with the test images behind its mirrors, for as long as `stack` lives. */
export const daemonForCritest = async (stack: AsyncDisposableStack, subnet: number): Promise<Daemon> => {
  const registry = stack.use(await startRegistry({ dir: inCache("cri-registry") }));
  await ensureTestImages(registry.host);
  const daemon = stack.use(await createDaemon({ registry: registry.host, subnet }));
  await daemon.start();
  return daemon;
};

export type Handler = "runc" | "gvisor" | "shim";

/** A line of SPECIFICATION.md: specs that do not pass, by a part of their name. */
type Exception = { part: string; count: number; state: "skipped" | "failed" };

/** SPECIFICATION.md's list of what does not pass behind this handler. */
export const exceptionsOf = (specification: string, handler: Handler): Exception[] =>
  specification.split("\n").flatMap((line): Exception[] => {
    const [, part, count, state, handlers] =
      /^\| `([^`]+)` \| (\d+) (skipped|failed) \| ([^|]+) \|/.exec(line) ?? [];
    if (part === undefined || !handlers?.split(",").some((each) => each.trim() === handler)) return [];
    return [{ part, count: Number(count), state: state === "failed" ? "failed" : "skipped" }];
  });

/** Where a run and the list differ, as sentences; none when both say the same. */
export const differencesOf = (specs: readonly Spec[], exceptions: readonly Exception[]): string[] => {
  const matches = ({ part, state }: Exception, spec: Spec): boolean =>
    spec.state === state && spec.name.includes(part);
  return [
    ...specs
      .filter((spec) => spec.state !== "passed" && !exceptions.some((each) => matches(each, spec)))
      .map(({ name, state, message }) => `${state}, but not listed: ${name}: ${message.slice(0, 500)}`),
    ...exceptions.flatMap((each) => {
      const found = specs.filter((spec) => matches(each, spec)).length;
      return found === each.count
        ? []
        : [`listed as ${each.count} ${each.state}, but it was ${found}: ${each.part}`];
    }),
  ];
};

/** Where a run differs from SPECIFICATION.md. */
export const differences = async (specs: readonly Spec[], handler: Handler): Promise<string[]> => {
  const specification = await readFile(join(import.meta.dirname, "../../SPECIFICATION.md"), "utf8");
  return differencesOf(specs, exceptionsOf(specification, handler));
};

/** Left out by name: see SPECIFICATION.md. */
export const leftOut = ["--ginkgo.skip=public image with digest"];

/** Runs critest with its output on ours; returns its exit code. */
export const showCritest = (
  socket: string,
  args: readonly string[],
  signal: AbortSignal,
): Promise<number> => {
  const {
    argv: [program, ...rest],
    env,
  } = critestCommand(socket, args);
  return new Promise((resolve, reject) => {
    spawn(program, rest, { stdio: "inherit", signal, env: { ...process.env, ...env } })
      .on("error", reject)
      .on("close", (code) => resolve(code ?? 1));
  });
};
