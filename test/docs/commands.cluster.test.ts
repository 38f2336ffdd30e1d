import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { dump, load } from "js-yaml";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bulkheadCluster, namespace, profileReady } from "../cluster/bulkhead.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { writePlugin } from "../dev/plugin.ts";
import { inNamespace, type Namespace, podOf } from "../pods/kube.ts";
import { inCache } from "../tools/cache.ts";
import { outcome } from "../tools/run.ts";
import { allBlocks, type Block, type Command, commandsOf, isYaml, repository } from "./blocks.ts";
import { isRun, otherYaml } from "./elsewhere.ts";

/**
 * Every command of the pages on a live cluster, and every block of YAML in the hands of its API server. What would write
 * is asked with --dry-run=server; but for `kubectl bulkhead rollout`, which pauses, resumes and restarts for real.
 */

let cluster: Cluster;
let ns: Namespace;
let directory: string;
let tag: string;
let env: Record<string, string>;

beforeAll(async () => {
  cluster = await bulkheadCluster();
  directory = await mkdtemp(join(tmpdir(), "bh-docs-"));
  await writePlugin(directory);
  env = {
    KUBECONFIG: cluster.kubeconfig,
    PATH: [directory, inCache("bin"), dirname(process.execPath), process.env.PATH].join(delimiter),
    BULKHEAD_DEV_CLUSTER: cluster.name,
    HELM_CACHE_HOME: directory,
    HELM_CONFIG_HOME: directory,
    HELM_DATA_HOME: directory,
  };
  const values = await cluster.helm(["get", "values", "bulkhead", "-n", namespace, "-o", "json"]);
  tag = (JSON.parse(values) as { image: { tag: string } }).image.tag;
  ns = inNamespace(cluster, "documented");
  await ns.create();
  await ns.run(podOf("pod", "sandboxed", `${cluster.registry}/bulkhead/test:1`));
});
afterAll(async () => {
  await ns?.destroy();
  if (directory !== undefined) await rm(directory, { recursive: true });
  if (cluster !== undefined) await profileReady(cluster, "sandboxed");
});

/** What the pages leave to their reader. */
const filled = (text: string): string =>
  text
    .replaceAll("REGISTRY", cluster.registry)
    .replaceAll("NAMESPACE/POD", "documented/pod")
    .replaceAll("NODE", cluster.nodes[0]!.name)
    .replaceAll(/(:|image\.tag=)0\.1\.0\b/g, `$1${tag}`)
    // The tests' registry speaks plain HTTP.
    .replace(/^skopeo copy /, "skopeo copy --src-tls-verify=false --dest-tls-verify=false ");

const writes = /^kubectl (-n \S+ )?(apply|create|delete|label|annotate|patch|cordon|uncordon|drain) /;
const dry = (text: string): string => {
  if (writes.test(text) || /^helm (install|upgrade) /.test(text)) return `${text} --dry-run=server`;
  return /^helm uninstall /.test(text) ? `${text} --dry-run` : text;
};

/** A forward runs until it is stopped: as soon as it says that it serves, or after a minute. */
const untilItServes = (command: string): string => {
  if (!/ port-forward /.test(command)) return command;
  const said = join(directory, "forward");
  const serves = `grep -q '^Forwarding from' ${said}`;
  return `${command} >${said} & for i in $(seq 300); do ${serves} && break; sleep 0.2; done; kill $!; ${serves}`;
};

const run = async ({ text, onNode, output }: Command): Promise<void> => {
  const command = dry(filled(text));
  const node = cluster.nodes[0]!;
  const { code, stdout, stderr } = onNode
    ? await node.try(["sh", "-c", command])
    : await outcome(["timeout", "120", "sh", "-c", untilItServes(command)], { cwd: repository, env });
  // The doctor's findings are its own.
  const good = /bulkhead doctor/.test(command) ? [0, 1] : [0];
  expect(good, `${command}: exit code ${code}\n${stderr}${stdout}`).toContain(code);
  const header = (printed: string): string[] => (printed.split("\n")[0] ?? "").trim().split(/\s+/);
  if (/^[A-Z ]+\n/.test(output)) expect(header(stdout)).toEqual(header(output));
};

const commands = (await allBlocks()).flatMap(commandsOf).filter(({ text, onNode }) => onNode || isRun(text));
describe.each([...Map.groupBy(commands, ({ file }) => file)])("%s:", (_file, said) => {
  test.each(said.map((command) => [command.text, command] as const))("%s", (_text, command) => run(command));
});

/** A block as an object that the API server can judge: what stands for more is filled in, a part gets its whole. */
const objectsOf = ({ text }: Block): string => {
  const whole = text
    .replaceAll(/sha256:…/g, `sha256:${"0".repeat(64)}`)
    .replaceAll(/^( *)…$/gm, "$1MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE");
  // Not the cluster's own profile of that name, whose fields would stay.
  if (/^(#.*\n)*apiVersion:/.test(whole)) return whole.replace(/(name: )(sandboxed|standard)\b/, "$1page-$2");
  const { spec } = load(whole) as { spec: object };
  const profile = { apiVersion: "bulkhead.dev/v1alpha1", kind: "RuntimeProfile", metadata: { name: "part" } };
  return dump({ ...profile, spec: { handler: { runc: {} }, ...spec } });
};

const yaml = (await allBlocks())
  .filter(isYaml)
  .filter(({ file, text }) => !otherYaml[`${file} ${text.split("\n")[0]}`])
  .map((block) => [`${block.file}, line ${block.line}`, block] as const);
test.each(yaml)("The YAML of %s is taken", async (_where, block) => {
  if (block.info === "yaml values") {
    const values = join(directory, "values.yaml");
    await writeFile(values, block.text);
    const argv = ["template", "bulkhead", join(repository, "charts/bulkhead"), "--values", values];
    await cluster.helm(argv);
  } else {
    await cluster.kubectl(["apply", "--dry-run=server", "-f", "-"], { input: objectsOf(block) });
  }
});
