#!/usr/bin/env node
import { type Client, createClient } from "@bulkhead/lib/kube/client.ts";
import { type UserConfig, userConfig } from "@bulkhead/lib/kube/config.ts";
import { leases, operatorLease } from "@bulkhead/lib/kube/lease.ts";
import { nodeRuntimes, runtimeClasses, runtimeProfiles } from "@bulkhead/lib/kube/resources.ts";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { detailView, statusView } from "@bulkhead/lib/view/profile.ts";
import { Argument, Command, Option } from "commander";
import manifest from "../package.json" with { type: "json" };
import { agentsProgress, readAgents, setAgentsPaused } from "./agents.ts";
import { heard, homeOf, isInstalled, listAll, look, nodes, pods } from "./cluster.ts";
import { candidates, completionScript } from "./completion.ts";
import { diagnose, diagnosisText, type Finding, notInstalled } from "./doctor.ts";
import { type Explanation, explain, explanationText, profileOf } from "./explain.ts";
import { historyTable, readHistory, undo } from "./history.ts";
import { revisionNumber, seconds } from "./numbers.ts";
import { type Format, format, formats } from "./output.ts";
import { progressOf, restart, setPaused, waitForRollout } from "./rollout.ts";
import { detailText, statusTable } from "./status.ts";
import { painter } from "./table.ts";
import { tenantsTable, tenantsView } from "./tenants.ts";

/** `kubectl bulkhead …`: a look at every wall, and the levers of a rollout. */

type Flags = {
  kubeconfig?: string;
  context?: string;
  namespace?: string;
  bulkheadNamespace?: string;
  output: Format;
  color: "auto" | "always" | "never";
};

const program = new Command("kubectl-bulkhead")
  .description(
    "Bulkhead's RuntimeProfiles: which wall stands where, what is wrong, and how a change rolls out.",
  )
  .version(manifest.version)
  .configureHelp({ showGlobalOptions: true })
  .showHelpAfterError("(kubectl bulkhead --help tells more)")
  .option("--kubeconfig <file>", "kubeconfig to use; $KUBECONFIG or ~/.kube/config when left out")
  .option("--context <name>", "context of the kubeconfig to use")
  .option("-n, --namespace <name>", "namespace of a pod; the context's when left out")
  .option("--bulkhead-namespace <name>", "namespace that Bulkhead is installed in; found when left out")
  .addOption(new Option("-o, --output <format>", "how to print").choices(formats).default("table"))
  .addOption(
    new Option("--color <when>", "colours; auto: on a terminal unless $NO_COLOR is set")
      .choices(["auto", "always", "never"])
      .default("auto"),
  );

const flags = (): Flags => program.opts<Flags>();
const print = (text: string): void => void process.stdout.write(text);
const paint = () => {
  const { color } = flags();
  const asked = color === "always" || (process.stdout.isTTY && process.env.NO_COLOR === undefined);
  return painter(color !== "never" && asked);
};
const show = <T>(view: T, human: (view: T, wide: boolean) => string): void =>
  print(format(view, flags().output, human));

/** Runs a command against the cluster, and closes the connection whatever comes of it. */
const onCluster = async (work: (client: Client, user: UserConfig) => Promise<void>): Promise<void> => {
  const { kubeconfig, context } = flags();
  const user = await userConfig({
    ...(kubeconfig === undefined ? {} : { file: kubeconfig }),
    ...(context === undefined ? {} : { context }),
  });
  const client = createClient({ config: user.config, userAgent: `kubectl-bulkhead/${manifest.version}` });
  try {
    await work(client, user);
  } finally {
    await client.close();
  }
};

/** The namespace that Bulkhead is installed in. */
const home = async (client: Client): Promise<string> => flags().bulkheadNamespace ?? (await homeOf(client));

/** What a get answers, or undefined when there is nothing of that name. */
const orNothing = async <T>(found: Promise<T>): Promise<T | undefined> => {
  try {
    return await found;
  } catch (error) {
    if (hasCode(error, "not-found")) return undefined;
    throw error;
  }
};

program
  .command("status")
  .description("the profiles and how they stand; with a name, one profile node by node")
  .argument("[profile]", "a RuntimeProfile")
  .action((name: string | undefined) =>
    onCluster(async (client) => {
      if (name === undefined) {
        const view = statusView({ profiles: await listAll(client, runtimeProfiles), now: Date.now() });
        show(view, (profiles, wide) => statusTable(profiles, wide, paint()));
        return;
      }
      const [profile, runtimes] = await Promise.all([
        client.get(runtimeProfiles, name),
        listAll(client, nodeRuntimes).then((all) => heard(client, all)),
      ]);
      const view = detailView(profile, { nodeRuntimes: runtimes, now: Date.now() });
      show(view, (detail) => detailText(detail, paint()));
    }),
  );

program
  .command("explain")
  .description(
    "the whole way from the kubelet to a pod's processes: each hop, its version, its time, its wall",
  )
  .argument("<pod>", "a pod, as NAME or NAMESPACE/NAME")
  .action((pod: string) =>
    onCluster(async (client, user) => {
      const [, inName, name = ""] = /^(?:([^/]+)\/)?([^/]+)$/.exec(pod) ?? [];
      if (name === "")
        throw new RuntimeError("invalid-argument", `Cannot read "${pod}": it is not NAME or NAMESPACE/NAME`);
      const namespace = inName ?? flags().namespace ?? user.namespace;
      const found = await client.get(pods, name, { namespace });
      const { nodeName, runtimeClassName } = found.spec ?? {};
      const [node, nodeRuntime, runtimeClass, profiles] = await Promise.all([
        nodeName ? orNothing(client.get(nodes, nodeName)) : undefined,
        nodeName ? orNothing(client.get(nodeRuntimes, nodeName)) : undefined,
        runtimeClassName ? orNothing(client.get(runtimeClasses, runtimeClassName)) : undefined,
        listAll(client, runtimeProfiles),
      ]);
      const profile = profileOf(found, profiles);
      const view = explain({
        pod: found,
        ...(node ? { node } : {}),
        ...(nodeRuntime ? { nodeRuntime } : {}),
        ...(runtimeClass ? { runtimeClass } : {}),
        ...(profile ? { profile } : {}),
      });
      show<Explanation>(view, (explanation) => explanationText(explanation, paint()));
    }),
  );

const staleAfterOption = [
  "--stale-after <seconds>",
  "an agent silent for longer is taken for ill",
  seconds,
  180,
] as const;

program
  .command("doctor")
  .description(
    "what is wrong on this cluster, or on one node, and how to mend it; exits with 1 when something is",
  )
  .argument("[node]", "only what concerns this node")
  .option(...staleAfterOption)
  .action((node: string | undefined, { staleAfter }: { staleAfter: number }) =>
    onCluster(async (client) => {
      let findings: Finding[];
      if (!(await isInstalled(client))) findings = [notInstalled];
      else {
        const namespace = await home(client);
        const [seen, lease] = await Promise.all([
          look(client).then(async (all) => ({ ...all, nodeRuntimes: await heard(client, all.nodeRuntimes) })),
          orNothing(client.get(leases, operatorLease, { namespace })),
        ]);
        const examined = { ...seen, namespace, ...(lease ? { lease } : {}), staleAfterMs: staleAfter * 1000 };
        findings = diagnose(examined, node);
      }
      show(findings, (all) => diagnosisText(all, paint()));
      if (findings.some(({ severity }) => severity === "error")) process.exitCode = 1;
    }),
  );

program
  .command("tenants")
  .description("which namespace's pods stand behind which wall")
  .option(...staleAfterOption)
  .action(({ staleAfter }: { staleAfter: number }) =>
    onCluster(async (client) => {
      const seen = await look(client);
      const { namespace } = flags();
      const nodeRuntimes = await heard(client, seen.nodeRuntimes);
      const views = tenantsView({ ...seen, nodeRuntimes }, staleAfter * 1000).filter(
        (view) => namespace === undefined || view.namespace === namespace,
      );
      show(views, (all, wide) => tenantsTable(all, wide, paint()));
    }),
  );

const rollout = program
  .command("rollout")
  .description("how a change of a profile, or of Bulkhead's own version, reaches the nodes");
rollout
  .command("status")
  .description("wait until the newest spec or version is on every node; exits with 1 when the rollout fails")
  .argument("[profile]", "a RuntimeProfile; Bulkhead's own version when left out")
  .option("--timeout <seconds>", "give up after so long; such as 90s, 5m", seconds, 600)
  .option("--no-watch", "tell how it stands now, and end")
  .action((name: string | undefined, { timeout, watch }: { timeout: number; watch: boolean }) =>
    onCluster((client) =>
      waitForRollout(
        name ?? "Bulkhead",
        async () =>
          name === undefined
            ? agentsProgress(await readAgents(client, await home(client)))
            : progressOf(await client.get(runtimeProfiles, name)),
        { timeoutMs: timeout * 1000, watch, say: (text) => print(`${text}\n`) },
      ),
    ),
  );
for (const [verb, paused, done] of [
  ["pause", true, "paused"],
  ["resume", false, "resumed"],
] as const)
  rollout
    .command(verb)
    .description(paused ? "give the newest spec or version to no further node" : "go on giving it to nodes")
    .argument("[profile]", "a RuntimeProfile; Bulkhead's own version when left out")
    .action((profile: string | undefined) =>
      onCluster(async (client) => {
        const { name, changed } =
          profile === undefined
            ? await setAgentsPaused(client, await home(client), paused)
            : { name: profile, changed: await setPaused(client, profile, paused) };
        const kind = profile === undefined ? "daemonset.apps" : "runtimeprofile.bulkhead.dev";
        print(`${kind}/${name} ${changed ? done : `is ${paused ? "" : "not "}paused already`}\n`);
      }),
    );

rollout
  .command("restart")
  .description("install and prove the profile again on every node, in waves, as a new revision")
  .argument("<profile>", "a RuntimeProfile")
  .action((name: string) =>
    onCluster(async (client) => {
      await restart(client, name, new Date());
      print(`runtimeprofile.bulkhead.dev/${name} restarted\n`);
    }),
  );
rollout
  .command("history")
  .description("the revisions that are kept of a profile; -o yaml shows what each had")
  .argument("<profile>", "a RuntimeProfile")
  .action((name: string) =>
    onCluster(async (client) => {
      show(await readHistory(client, name, await home(client)), (views) => historyTable(views, paint()));
    }),
  );
rollout
  .command("undo")
  .description("put an earlier revision back into the profile's spec")
  .argument("<profile>", "a RuntimeProfile")
  .option("--to-revision <number>", "that revision; the one before when left out", revisionNumber)
  .action((name: string, { toRevision }: { toRevision?: number }) =>
    onCluster(async (client) => {
      const { revision, hash, current } = await undo(client, name, await home(client), toRevision);
      print(
        `runtimeprofile.bulkhead.dev/${name} ${current ? "is" : "goes back to"} revision ${revision} (${hash})${current ? " already" : ""}\n`,
      );
    }),
  );

program
  .command("version")
  .description("print the version")
  .action(() => print(`${manifest.version}\n`));

program
  .command("completion")
  .description(
    "print the script that kubectl completes this plugin with: save it as kubectl_complete-bulkhead on $PATH",
  )
  .addArgument(
    new Argument("[shell]", "kubectl's own completion serves all of them").choices(["bash", "zsh", "fish"]),
  )
  .action(() => print(completionScript));

program
  .command("__complete", { hidden: true })
  .argument("[words...]")
  .action((words: string[]) =>
    onCluster(async (client) => {
      const found = await candidates(program, words, {
        profiles: async () => (await listAll(client, runtimeProfiles)).map((each) => each.metadata.name),
        nodes: async () => (await listAll(client, nodeRuntimes)).map((each) => each.metadata.name),
      });
      print(`${found.map((word) => `${word}\n`).join("")}:4\n`);
    }),
  );

try {
  await program.parseAsync();
} catch (error) {
  process.stderr.write(`error: ${messageOf(error)}\n`);
  process.exitCode = 1;
}
