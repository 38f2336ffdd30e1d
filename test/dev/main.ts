import { join } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { Argument, Command, Option } from "commander";
import { type Cluster, openCluster, startCluster, stopCluster } from "../cluster/cluster.ts";
import { defaultDescription } from "../cluster/description.ts";
import { listRecords } from "../cluster/record.ts";
import { type Engine, engines } from "../e2e/run.ts";
import { tool } from "../tools/cache.ts";
import { chosenVersions, type KubernetesVersion, kubernetesVersions } from "../tools/kubernetes.ts";
import type { Need } from "../tools/plan.ts";
import { setup } from "../tools/setup.ts";
import { critest } from "./critest.ts";
import { inherit, logNames, nodeOf, showLogs } from "./logs.ts";
import { wholeNumber } from "./numbers.ts";
import { progress, reportSetup } from "./progress.ts";
import { crictl, type RuntimeOptions, runtimeDown, runtimeRecord, runtimeUp } from "./runtime.ts";
import { statusText } from "./status.ts";
import { type Project, projects, runTests } from "./tests.ts";
import { otherVersions, testVersions } from "./versions.ts";

/** Ctrl-C ends what is under way and cleans up after it; a second one does not wait for that. */
const interrupt = new AbortController();
for (const name of ["SIGINT", "SIGTERM"] as const)
  process.on(name, () => {
    if (interrupt.signal.aborted) process.exit(130);
    process.stderr.write("\ncleaning up; once more to leave everything as it is\n");
    interrupt.abort(new RuntimeError("cancelled", "interrupted"));
  });
const { signal } = interrupt;

const prepare = (need: Need): Promise<void> => {
  const { controlPlane, kubelet } = chosenVersions();
  return setup(need, [...new Set([controlPlane, kubelet])], reportSetup, signal);
};
const say = (text: string): void => void process.stderr.write(`${text}\n`);
const print = (text: string): void => void process.stdout.write(text);

/** The cluster that a command means: the one it names, or the only one, or the demo's. */
const theCluster = async (name?: string): Promise<Cluster> => {
  if (name !== undefined) return openCluster(name);
  const names = (await listRecords()).map((record) => record.description.name);
  return openCluster(names.length === 1 ? names[0]! : "demo");
};

const program = new Command("./dev")
  .description("Sets up, runs and tests Bulkhead on this machine. Everything it fetches or builds is cached.")
  .enablePositionalOptions()
  .showHelpAfterError()
  .addOption(new Option("--cluster <name>", "the cluster that a command means").env("BULKHEAD_DEV_CLUSTER"))
  .addOption(
    new Option("--kubernetes <minor>", "the Kubernetes of what a command starts")
      .choices(Object.keys(kubernetesVersions))
      .env("BULKHEAD_KUBERNETES"),
  )
  .addOption(
    new Option("--kubelet <minor>", "that of its nodes, where it is another one")
      .choices(Object.keys(kubernetesVersions))
      .env("BULKHEAD_KUBELET"),
  )
  // The tests are programs of their own.
  .hook("preAction", () => {
    const { kubernetes, kubelet } = program.opts<{ kubernetes?: string; kubelet?: string }>();
    if (kubernetes !== undefined) process.env.BULKHEAD_KUBERNETES = kubernetes;
    if (kubelet !== undefined) process.env.BULKHEAD_KUBELET = kubelet;
  });
const chosen = (): string | undefined => program.opts<{ cluster?: string }>().cluster;

/** A command whose arguments all belong to the program behind it. */
const passing = (name: string, description: string): Command =>
  program
    .command(name)
    .description(description)
    .argument("[args...]")
    .passThroughOptions()
    .allowUnknownOption()
    .helpOption(false);

program
  .command("demo")
  .description("a real cluster with Bulkhead on it, two profiles, and the same pod behind each wall")
  .action(async () => {
    await prepare("demo");
    const { demo } = await import("./demo.ts");
    await demo(progress, print, signal);
  });

program
  .command("up")
  .description("start a cluster without Bulkhead, or mend the one that runs")
  .option("--nodes <number>", "how many nodes", wholeNumber(1), 1)
  .action(async ({ nodes }: { nodes: number }) => {
    await prepare("up");
    const cluster = await startCluster(defaultDescription(chosen() ?? "demo", nodes), {
      signal,
      progress,
    });
    print(await cluster.kubectl(["get", "nodes", "-o", "wide"]));
    say(`export KUBECONFIG=${cluster.kubeconfig}`);
  });

program
  .command("down")
  .description("take everything away that runs: the named cluster, or all of them and the runtime")
  .action(async () => {
    const name = chosen();
    const names = name === undefined ? (await listRecords()).map((each) => each.description.name) : [name];
    for (const each of names) await progress(`take cluster ${each} down`, () => stopCluster(each));
    if (name === undefined && (await runtimeRecord()) !== undefined)
      await progress("take the runtime down", runtimeDown);
  });

program
  .command("status")
  .description("what runs and how it is")
  .action(async () => print(await statusText()));

passing("kubectl", "kubectl on the cluster").action(async (args: string[]) => {
  const { kubeconfig } = await theCluster(chosen());
  process.exitCode = await inherit([tool("kubectl"), ...args], { KUBECONFIG: kubeconfig });
});

passing("helm", "helm on the cluster").action(async (args: string[]) => {
  const { kubeconfig } = await theCluster(chosen());
  process.exitCode = await inherit([tool("helm"), ...args], { KUBECONFIG: kubeconfig });
});

passing("crictl", "crictl on the first node, or on the runtime that runs alone").action(
  async (args: string[]) => {
    const runtime = await runtimeRecord();
    process.exitCode =
      runtime !== undefined && chosen() === undefined
        ? await inherit(crictl(runtime, ...args))
        : await (await theCluster(chosen())).nodes[0]!.shell(["crictl", ...args]);
  },
);

program
  .command("shell")
  .description("a shell on a node, or a command there")
  .argument("[node]", "name of the node; the first one if none is given")
  .argument("[command...]")
  .passThroughOptions()
  .action(async (name: string | undefined, command: string[]) => {
    const node = nodeOf(await theCluster(chosen()), name);
    const argv = command[0] === "--" ? command.slice(1) : command;
    process.exitCode = await node.shell(argv.length > 0 ? argv : undefined);
  });

program
  .command("logs")
  .description(`the log of a component: ${logNames.join(", ")}`)
  .argument("<component>")
  .option("-f, --follow", "go on as it grows", false)
  .option("--node <name>", "of which node, where each has one")
  .action(async (component: string, options: { follow: boolean; node?: string }) => {
    process.exitCode = await showLogs(await theCluster(chosen()), component, options);
  });

program
  .command("artifact")
  .description("images of the programs of a wall (docs/artifacts.md)")
  .command("build")
  .description("build one and push it; prints its reference by digest")
  .argument("<what...>", "gvisor, kata (of KATA_ROOT, default /opt/kata), DIRECTORY or ARCH=DIRECTORY")
  .option("--registry <host[:port]>", "where to push it")
  .option("--name <name>", "its repository there")
  .option("--tag <tag>", "its tag there", "latest")
  .option("--insecure", "the registry speaks plain HTTP")
  .option("--layout <directory>", "an OCI image layout to write, instead of or before pushing")
  .action(async (what: string[], options: Record<string, string | boolean>) => {
    if (what.includes("gvisor")) await prepare("host");
    const { buildArtifact } = await import("./artifact.ts");
    const flags = Object.entries(options).flatMap(([name, value]) =>
      value === true ? [`--${name}`] : [`--${name}`, String(value)],
    );
    print(await buildArtifact(what, flags, signal));
  });

program
  .command("test")
  .description("set everything up, run checks and tests, and end with a line that counts them")
  .argument("[filters...]", "only test files whose path has one of these in it")
  .option("--project <name>", `only these tests: ${projects.join(", ")}; may be repeated`, oneProject, [])
  .action(async (filters: string[], { project }: { project: Project[] }) => {
    const wanted = project.length > 0 ? project : projects;
    await prepare(
      wanted.some((each) => each === "cluster" || each === "lifecycle")
        ? "all"
        : wanted.includes("host")
          ? "host"
          : wanted.includes("vm")
            ? "vm"
            : "unit",
    );
    process.exitCode = await runTests(wanted, filters, signal);
  });

program
  .command("vm-arm64")
  .description("the runtime on arm64, in an emulated machine: minutes")
  .action(async () => {
    await prepare("vm-arm64");
    process.exitCode = await inherit(["vitest", "run", "--project", "arm64", "--reporter=verbose"]);
  });

program
  .command("versions")
  .description("the tests that another Kubernetes could fail, on each that CI does not start")
  .addArgument(new Argument("[minor...]", "which").choices(otherVersions).default(otherVersions))
  .option("--nodes", "with its kubelet on nodes for each, not for the oldest alone", false)
  .action(async (versions: KubernetesVersion[], { nodes }: { nodes: boolean }) => {
    process.exitCode = await testVersions(versions, nodes ? versions : [otherVersions[0]!], print, signal);
  });

function oneProject(value: string, before: Project[]): Project[] {
  const project = projects.find((each) => each === value);
  if (project === undefined)
    throw new RuntimeError(
      "invalid-argument",
      `Cannot find project "${value}": it is one of ${projects.join(", ")}`,
    );
  return [...before, project];
}

program
  .command("plugin")
  .description("build the kubectl plugin: with the directory on $PATH, kubectl bulkhead works")
  .argument("<dir>", "where kubectl-bulkhead and kubectl_complete-bulkhead go")
  .action(async (directory: string) => {
    const { writePlugin } = await import("./plugin.ts");
    print(`${await writePlugin(directory)}\n`);
  });

const runtime = program
  .command("runtime")
  .description("the CRI daemon alone on this machine, for crictl and critest");
runtime
  .command("up")
  .description("start it, with the handlers runc and gvisor")
  .option("--socket <path>", "CRI socket")
  .option("--root <dir>", "images and container file systems")
  .option("--state <dir>", "what is valid until reboot")
  .option("--mirror <host=url>", "ask this URL before the registry HOST; may be repeated", collect, [])
  .option("--test-images", "also start a registry with all test images, in place of those they are named by")
  .action(async (options: RuntimeOptions) => {
    await prepare(options.testImages === true ? "images" : "runtime");
    const { socket } = await progress("start the runtime", () => runtimeUp(options, signal));
    print(`unix://${socket}\n`);
  });
runtime
  .command("down")
  .description("end it, its pods and all that is left of them")
  .action(async () => {
    if (!(await runtimeDown())) say("no runtime runs");
  });

function collect(value: string, before: string[]): string[] {
  if (!/^[^=]+=https?:\/\/.+$/.test(value))
    throw new RuntimeError("invalid-argument", `Cannot use mirror "${value}": it must be HOST=URL`);
  return [...before, value];
}

passing(
  "critest",
  "critest against the runtime, with --handler runc, gvisor or shim; the other arguments are critest's own",
).action(async (args: string[]) => {
  await prepare("critest");
  process.exitCode = await critest(args, signal);
});

program
  .command("e2e-upstream")
  .description(
    "Kubernetes' own end-to-end specs on two nodes whose engine is Bulkhead's runtime, or containerd",
  )
  .addOption(new Option("--engine <name>", "what the nodes run on").choices(engines).default(engines[0]))
  .option("--focus <regexp>", "only specs whose name matches; may be repeated", each, [])
  .option("--skip <regexp>", "none whose name matches; may be repeated", each, [])
  .option("--procs <number>", "specs side by side", wholeNumber(1), 4)
  .action(async (options: { engine: Engine; focus: string[]; skip: string[]; procs: number }) => {
    await prepare("e2e-upstream");
    const focus = options.focus.length > 0 ? options.focus : ["\\[NodeConformance\\]"];
    const { e2eUpstream } = await import("./e2e-upstream.ts");
    process.exitCode = await e2eUpstream({ ...options, focus }, progress, print, signal);
  });

function each(value: string, before: string[]): string[] {
  return [...before, value];
}

for (const [name, file, description] of [
  ["bench", "bench/main.ts", "Bulkhead beside containerd: start, exec, many, pull, critest, or all of them"],
  ["faults", "faults/main.ts", "random work with things going wrong, compared with the truth"],
  ["soak", "soak/main.ts", "10,000 containers in one life of the daemon, memory and descriptors flat"],
  [
    "scale",
    "scale/main.ts",
    "the real API server and operator with thousands of nodes whose agents are a fake",
  ],
] as const)
  passing(name, `${description}; --help says how`).action(async (args: string[]) => {
    if (!args.some((arg) => arg === "--help" || arg === "-h")) await prepare("bench");
    process.exitCode = await inherit([process.execPath, join(import.meta.dirname, "..", file), ...args]);
  });

program
  .command("tools")
  .description("only set up: packages, pinned programs, the nodes' root filesystem")
  .addOption(
    new Option("--arch <name>", "what images for that architecture are made of, too").choices(["arm64"]),
  )
  .action(async ({ arch }: { arch?: "arm64" }) => {
    await prepare("all");
    if (arch !== undefined) await prepare(arch);
  });

try {
  await program.parseAsync();
} catch (error) {
  process.stderr.write(`dev: ${messageOf(error)}\n`);
  process.exitCode = signal.aborted ? 130 : 1;
}
