import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type Host, realIn, resolveIn } from "../installer/host.ts";
import { Ownership } from "../installer/ownership.ts";
import { adapters } from "./adapters.ts";
import { readFiles } from "./detect.ts";
import { takeBack } from "./edits.ts";
import type { Engine, EngineHandler, EngineKind } from "./engine.ts";
import { planChange } from "./plan.ts";

/**
 * Host trees before and after: test-data/engines/NAME/{before,after}. UPDATE_GOLDEN=1 writes what stands under after.
 * Every case also goes back, and ends with the bytes that it began with.
 */

/** microk8s' wrapper writes the revision out. */
const microk8s = (revision: string): string[] => [
  `/snap/microk8s/${revision}/bin/containerd`,
  ...["--config", `/var/snap/microk8s/${revision}/args/containerd.toml`],
];

const cases: [name: string, kind: EngineKind, version: string, argv: string[]][] = [
  ["containerd-2-dropins", "containerd", "v2.4.2", ["/usr/local/bin/containerd"]],
  ["containerd-2-version-2", "containerd", "2.0.5", ["/usr/bin/containerd"]],
  ["containerd-2-no-file", "containerd", "v2.1.0", ["/usr/bin/containerd"]],
  ["containerd-1.6-debian", "containerd", "1.6.20~ds1", ["/usr/bin/containerd"]],
  ["containerd-1.7-dropins", "containerd", "1.7.27", ["/usr/bin/containerd"]],
  [
    "k3s-dropins",
    "containerd",
    "v2.0.4-k3s2",
    ["containerd", "-c", "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"],
  ],
  [
    "k3s-template",
    "containerd",
    "v1.7.11-k3s2",
    ["containerd", "-c", "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"],
  ],
  [
    "rke2-own-template",
    "containerd",
    "v1.7.7-k3s1",
    ["containerd", "-c", "/var/lib/rancher/rke2/agent/etc/containerd/config.toml"],
  ],
  ["k0s", "containerd", "v1.7.27", ["/var/lib/k0s/bin/containerd", "--config=/etc/k0s/containerd.toml"]],
  ["microk8s", "containerd", "v1.6.36", microk8s("8511")],
  ["microk8s-2", "containerd", "v2.2.3", microk8s("8511")],
  ["crio", "crio", "1.34.0", ["/usr/bin/crio"]],
  ["docker", "docker", "28.5.1", ["/usr/bin/dockerd", "-H", "fd://"]],
  ["docker-no-file", "docker", "20.10.24", ["/usr/sbin/dockerd"]],
];

const bin = "/opt/bulkhead/versions/1/bin";
const common: EngineHandler[] = [
  { name: "standard", kind: "runc", program: `${bin}/runc`, args: [], annotations: [] },
  {
    name: "sandboxed",
    kind: "gvisor",
    program: `${bin}/runsc`,
    shim: `${bin}/containerd-shim-runsc-v1`,
    config: "/etc/bulkhead/runsc/sandboxed.toml",
    args: ["--platform=systrap", "--network=sandbox"],
    annotations: ["dev.gvisor.flag.debug"],
    alias: "/opt/bulkhead/versions/1/crio/containerd-shim-runsc-v2",
  },
];
const shim: EngineHandler = {
  name: "any",
  kind: "shim",
  program: "/usr/local/bin/containerd-shim-any-v1",
  runtimeType: "io.containerd.any.v1",
  args: [],
  annotations: [],
  alias: "/opt/bulkhead/versions/1/crio/containerd-shim-any-v2",
};
const kata: EngineHandler = {
  name: "vm",
  kind: "vm",
  program: "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2",
  config: "/etc/bulkhead/kata/vm.toml",
  args: [],
  annotations: ["io.katacontainers.config.hypervisor.default_memory"],
};
/** All that an engine of the kind can serve. */
const handlersOf: Record<EngineKind, EngineHandler[]> = {
  containerd: [...common, shim, kata],
  crio: [...common, shim],
  docker: common.map((handler) => ({
    ...handler,
    args: handler.args.map((flag) => flag.replace("=sandbox", "=host")),
  })),
};

const data = join(import.meta.dirname, "../../test-data/engines");
const treeOf = (root: string): Record<string, string> =>
  Object.fromEntries(
    readdirSync(root, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && entry.name !== ".keep")
      .map((entry) => join(entry.parentPath, entry.name))
      .sort()
      .map((path) => [path.slice(root.length), readFileSync(path, "utf8")]),
  );

let root: string;
let host: Host;
let ownership: Ownership;
const write = async (tree: Record<string, string>, at: string): Promise<void> => {
  for (const [path, body] of Object.entries(tree)) {
    await mkdir(dirname(join(at, path)), { recursive: true });
    await writeFile(join(at, path), body);
  }
};
const refuse = () => Promise.reject(new Error("nothing runs here"));

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "engine-"));
  host = {
    at: (path) => resolveIn(root, path),
    real: (path) => realIn(root, path),
    run: refuse,
    fetch: refuse,
    serveLayout: refuse,
  };
  ownership = new Ownership(host, "/opt/bulkhead/installed.json");
});
afterEach(() => rmSync(root, { recursive: true }));

const engineOf = async (kind: EngineKind, version: string, argv: string[]): Promise<Engine> => ({
  kind,
  version,
  argv,
  socket: "/run/engine.sock",
  pid: 42,
  program: argv[0] ?? "",
  unit: "engine.service",
  killMode: "process",
  startedAt: 0,
  files: await readFiles(host, kind, argv, ownership.record.engine),
});

/** Plans and does what changes files; says what else there was to do. */
const change = async (engine: Engine, wanted: EngineHandler[]): Promise<string[]> => {
  const { record } = ownership;
  const { files, load } = planChange(
    engine,
    adapters[engine.kind].plan(engine, wanted, record.engine),
    record.engine,
    wanted,
    false,
  );
  const steps = [...files, ...load];
  for (const step of steps) {
    if (step.do === "record-engine") await ownership.update(() => ({ engine: step.record }));
    if (step.do === "write") await ownership.write(step.path, step.body);
    if (step.do === "edit") await ownership.write(step.path, step.body, { base: step.base });
    if (step.do === "restore") await ownership.restore(step.path);
    if (step.do === "take-back") await ownership.restore(step.path, (today) => takeBack(step.edit, today));
  }
  return steps.map((step) => step.do);
};
const tree = (): Record<string, string> => {
  const { "/opt/bulkhead/installed.json": _, ...rest } = treeOf(root);
  return rest;
};

describe.each(cases)("%s", (name, kind, version, argv) => {
  const before = treeOf(join(data, name, "before"));
  const handlers = handlersOf[kind];

  test("gets the handlers as its golden tree shows, and nothing the second time", async () => {
    await write(before, root);
    const steps = await change(await engineOf(kind, version, argv), handlers);
    expect(steps).toEqual(expect.arrayContaining(["reload-engine", "await-engine"]));
    if (process.env.UPDATE_GOLDEN) {
      rmSync(join(data, name, "after"), { recursive: true, force: true });
      await write(tree(), join(data, name, "after"));
    }
    expect(tree()).toEqual(treeOf(join(data, name, "after")));
    expect(await change(await engineOf(kind, version, argv), handlers)).toEqual([]);
  });

  test("loses one handler, then all, and is byte for byte what it was", async () => {
    await write(before, root);
    await change(await engineOf(kind, version, argv), handlers);
    await change(await engineOf(kind, version, argv), handlers.slice(0, 1));
    expect(JSON.stringify(tree())).not.toContain("sandboxed");
    await change(await engineOf(kind, version, argv), []);
    expect(tree()).toEqual(before);
    expect(ownership.record.engine).toBeUndefined();
  });

  test("keeps what its owner writes meanwhile, in whichever order", async () => {
    const edited = Object.keys(before).filter(
      (path) => !path.includes(".d/") || path.startsWith("/etc/crio"),
    );
    const edit = (body: string): string =>
      kind === "docker" ? body.replace("{", '{\n    "debug": true,') : `${body}# edited\n`;
    const expected = Object.fromEntries(
      Object.entries(before).map(([path, body]) => [path, edited.includes(path) ? edit(body) : body]),
    );
    await write(before, root);
    await change(await engineOf(kind, version, argv), handlers);
    const today = tree();
    await write(Object.fromEntries(edited.map((path) => [path, edit(today[path] ?? "")])), root);
    // Looked at again, also with other handlers.
    await change(await engineOf(kind, version, argv), handlers.slice(0, 1));
    await change(await engineOf(kind, version, argv), []);
    const trimmed = (given: Record<string, string>) =>
      kind === "docker"
        ? Object.fromEntries(Object.entries(given).map(([path, body]) => [path, JSON.parse(body) as unknown]))
        : given;
    expect(trimmed(tree())).toEqual(trimmed(expected));
  });
});

describe.each([
  ["microk8s", "v1.6.36"],
  ["microk8s-2", "v2.2.3"],
])("%s after a refresh of the snap", (name, version) => {
  const before = treeOf(join(data, name, "before"));
  const handlers = handlersOf.containerd;
  const moved = (tree: Record<string, string>): Record<string, string> =>
    JSON.parse(JSON.stringify(tree).replaceAll("/8511/", "/8512/")) as Record<string, string>;
  const [template, rendered] = ["containerd-template.toml", "containerd.toml"].map(
    (file) => `/var/snap/microk8s/8512/args/${file}`,
  );

  test.each([true, false])(
    "has the handlers, and loses them with the last (the old one there: %s)",
    async (kept) => {
      await write(before, root);
      await change(await engineOf("containerd", version, microk8s("8511")), handlers);
      const told = tree();
      // snapd copies the directory, and microk8s writes its file from the template.
      const file = "/etc/bulkhead/containerd.toml";
      const copied = moved(
        Object.fromEntries(Object.entries(told).filter(([path]) => path.startsWith("/var/snap/"))),
      );
      const ours = (copied[template!] ?? "").split("\n")[0] ?? "";
      expect(ours).toContain(`"${file}"`);
      copied[rendered!] = `${ours}\n${copied[rendered!]}`;
      await write(copied, root);
      if (!kept) rmSync(join(root, "var/snap/microk8s/8511"), { recursive: true });
      const engine = () => engineOf("containerd", version, microk8s("8512"));
      await change(await engine(), handlers);
      const after = tree();
      expect(after[template!]).toBe(copied[template!]);
      expect(after[file]).toBe(moved(told)[file]);
      if (kept) expect(after).toMatchObject(before);
      expect(await change(await engine(), handlers)).toEqual([]);
      await change(await engine(), []);
      expect(tree()).toEqual({ ...(kept ? before : {}), ...moved(before), [rendered!]: copied[rendered!] });
      expect(ownership.record.engine).toBeUndefined();
    },
  );
});

describe("containerd's registries are where its own configuration has them:", () => {
  const main = "/etc/containerd/config.toml";
  const of = (version: string, files: Record<string, string>) =>
    adapters.containerd.registries?.({
      version,
      argv: ["containerd"],
      files: new Map(Object.entries(files)),
    });
  const cri = '[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = ';
  const images = '[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = ';

  test.each([
    ["a file of version 2", "1.7.27", `version = 2\n${cri}"/etc/certs"`, "/etc/certs"],
    ["a file of version 2 under containerd 2", "v2.1.0", `version = 2\n${cri}"/etc/certs"`, "/etc/certs"],
    ["a file of version 3", "v2.1.0", `version = 3\n${images}"/etc/certs"`, "/etc/certs"],
    ["the first of a list", "v2.1.0", `version = 3\n${images}"/etc/a:/etc/b"`, "/etc/a"],
    ["none", "v2.1.0", "version = 3\n", undefined],
    ["an empty one", "1.7.27", `version = 2\n${cri}""`, undefined],
  ])("%s", (_, version, text, found) => {
    expect(of(version, { [main]: text })).toBe(found);
  });

  test("an imported file comes after the one that names it", () => {
    const imports = 'imports = ["/etc/containerd/conf.d/*.toml"]\nversion = 3\n';
    const files = {
      [main]: `${imports}${images}"/etc/a"`,
      "/etc/containerd/conf.d/b.toml": `version = 3\n${images}"/etc/b"`,
    };
    expect(of("v2.1.0", files)).toBe("/etc/b");
  });
});
