import { describe, expect, test } from "vitest";
import { adapters } from "./adapters.ts";
import { addImport, parse, takeBack } from "./edits.ts";
import type { Engine, EngineHandler, EngineRecord } from "./engine.ts";
import { offered } from "./offered.ts";
import { planChange } from "./plan.ts";

const bin = "/opt/bulkhead/versions/1/bin";
const handler: EngineHandler = {
  name: "walled",
  kind: "runc",
  program: `${bin}/runc`,
  args: [],
  annotations: [],
};
const main = "/etc/containerd/config.toml";
const engine = (files: Record<string, string>, rest: Partial<Engine> = {}): Engine => ({
  kind: "containerd",
  version: "2.4.2",
  socket: "/run/containerd/containerd.sock",
  pid: 1,
  argv: ["/usr/bin/containerd"],
  program: "/usr/bin/containerd",
  unit: "containerd.service",
  killMode: "process",
  startedAt: 0,
  files: new Map(Object.entries(files)),
  ...rest,
});
const plan = (of: Engine, handlers = [handler], record?: EngineRecord) =>
  adapters[of.kind].plan(of, handlers, record);
const names = (steps: { do: string }[]): string[] => steps.map((step) => step.do);

describe("an engine that cannot be told is refused, and the message says which file and why:", () => {
  test.each<[string, Engine, RegExp]>([
    [
      "a containerd before 1.6",
      engine({}, { version: "1.5.18" }),
      /containerd 1\.5\.18: expected a version from 1\.6/,
    ],
    [
      "a configuration of version 1",
      engine({ [main]: "[plugins.cri]\n" }),
      /config\.toml": it is of configuration version 1/,
    ],
    [
      "a configuration that is no TOML",
      engine({ [main]: "version = [\n" }),
      /Cannot read containerd's "\/etc\/containerd\/config\.toml"/,
    ],
    [
      "a handler of that name of somebody else's",
      engine({
        [main]: `version = 3\n[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.walled]\n`,
      }),
      /handler "walled": "\/etc\/containerd\/config\.toml" has one/,
    ],
    [
      "the same in CRI-O",
      engine({ "/etc/crio/crio.conf.d/1.conf": "[crio.runtime.runtimes.walled]\n" }, { kind: "crio" }),
      /handler "walled": "\/etc\/crio\/crio\.conf\.d\/1\.conf" has one/,
    ],
    [
      "the same in Docker",
      engine({ "/etc/docker/daemon.json": '{"runtimes":{"walled":{"path":"x"}}}' }, { kind: "docker" }),
      /handler "walled": "\/etc\/docker\/daemon\.json" has one/,
    ],
    [
      "a daemon.json that is no JSON",
      engine({ "/etc/docker/daemon.json": "{" }, { kind: "docker" }),
      /Cannot read Docker's/,
    ],
    [
      "a dockerd with runtimes on its command line",
      engine({}, { kind: "docker", argv: ["dockerd", "--add-runtime=a=b"] }),
      /started with --add-runtime/,
    ],
  ])("%s", (_, of, message) => {
    expect(() => plan(of)).toThrow(message);
  });
});

describe("what an engine has no way to serve is refused with the reason:", () => {
  const kata: EngineHandler = {
    ...handler,
    kind: "vm",
    program: "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2",
    config: "/etc/bulkhead/kata/walled.toml",
  };
  const shim: EngineHandler = {
    ...handler,
    kind: "shim",
    program: "/usr/local/bin/containerd-shim-x-v1",
    runtimeType: "io.containerd.x.v1",
  };
  const flags: EngineHandler = { ...handler, args: ["--debug"] };
  const old = { version: "1.6.20" };
  test.each<[string, Partial<Engine>, EngineHandler, RegExp]>([
    ["flags of an OCI runtime by containerd", {}, flags, /it starts runc without flags/],
    ["flags of an OCI runtime by CRI-O", { kind: "crio" }, flags, /it starts runc without flags/],
    [
      "disks without a snapshotter of them",
      {},
      { ...kata, disks: true },
      /neither the snapshotter devmapper/,
    ],
    ["disks by a containerd before 1.7", old, { ...kata, disks: true }, /needs containerd 1\.7/],
    ["the sandbox API by such a one", old, { ...shim, sandboxApi: true }, /sandboxApi needs containerd 1\.7/],
    [
      "runc's shim by its path by one that ignores that",
      old,
      { ...shim, runtimeType: "io.containerd.runc.v2" },
      /needs containerd 1\.6\.21/,
    ],
    ["the sandbox API by CRI-O", { kind: "crio" }, { ...shim, sandboxApi: true }, /has no sandbox API/],
    [
      "options of runc's shim",
      {},
      { ...shim, runtimeType: "io.containerd.runc.v2", config: "/x.toml" },
      /options of runc's shim are containerd's own/,
    ],
    ["Kata by CRI-O", { kind: "crio" }, kata, /passes every annotation of a pod on/],
    ["Kata by Docker", { kind: "docker" }, kata, /makes a sandbox of each container/],
    [
      "gVisor's own network by Docker",
      { kind: "docker" },
      { ...handler, kind: "gvisor", args: ["--network=sandbox"] },
      /with handler\.gvisor\.network: host it runs/,
    ],
    ["a shim by Docker", { kind: "docker" }, shim, /makes a sandbox of each container/],
  ])("%s", (_, of, told, message) => {
    expect(() => plan(engine({ [main]: "version = 2\n" }, of), [told])).toThrow(message);
    expect(() => plan(engine({ [main]: "version = 2\n" }, of), [told])).toThrow(/use engine: bulkhead/);
  });

  test.each([
    ["1.6.0", true],
    ["1.6.20~ds1", true],
    ["1.6.21", false],
    ["v1.7.0", true],
    ["1.7.0-rc.1", true],
    ["1.7.1", false],
    ["1.7.27", false],
    ["2.0.1", false],
  ])("containerd %s is told of a shim by its path in the place of its type: %s", (version, instead) => {
    const told = Object.values(plan(engine({}, { version }), [shim]).own).join();
    expect(told.includes('runtime_type = "/usr/local/bin/containerd-shim-x-v1"')).toBe(instead);
    expect(told.includes("runtime_path")).toBe(!instead);
  });

  const configured = (name: string, key: string): string =>
    `version = 3\n[plugins."io.containerd.snapshotter.v1.${name}"]\n${key} = "x"\n`;
  test.each([
    ["devmapper", "pool_name"],
    ["blockfile", "scratch_file"],
  ])("disks come from the snapshotter %s where it is configured", (name, key) => {
    const { own } = plan(engine({ [main]: configured(name, key) }), [{ ...kata, disks: true }]);
    expect(Object.values(own).join()).toContain(`snapshotter = "${name}"`);
  });

  test("Docker takes flags of an OCI runtime, and containerd the sandbox API in the words of its version", () => {
    expect(plan(engine({}, { kind: "docker" }), [flags]).edits[0]?.after).toContain('"--debug"');
    const told = (version: string): string =>
      Object.values(plan(engine({}, { version }), [{ ...shim, sandboxApi: true }]).own).join();
    expect(told("2.4.2")).toContain('sandboxer = "shim"');
    expect(told("1.7.27")).toContain('sandbox_mode = "shim"');
  });
});

test("what k3s wrote from our template is ours and is not refused", () => {
  const argv = ["containerd", "-c", "/data/agent/etc/containerd/config.toml"];
  const template = "/data/agent/etc/containerd/config.toml.tmpl";
  const first = plan(engine({ [argv[2]!]: "version = 2\n" }, { argv, version: "1.7.11-k3s2" }));
  const tables = Object.values(first.own)
    .join()
    .replace(/^\{\{.*\n/, "");
  const record: EngineRecord = { kind: "containerd", own: [template], edited: [], handlers: ["walled"] };
  const today = engine(
    { [argv[2]!]: `version = 2\n${tables}`, ...first.own },
    { argv, version: "1.7.11-k3s2" },
  );
  expect(planChange(today, plan(today, [handler], record), record, [handler], false).load).toEqual([]);
});

describe("the steps", () => {
  const at = engine({ [main]: "version = 3\n" });
  test("record first, then files and the engine's own check, then the reload and the engine's word", () => {
    const { files, load } = planChange(at, plan(at), undefined, [handler], false);
    expect(names(files)).toEqual(["record-engine", "write", "edit", "check-engine"]);
    expect(names(load)).toEqual(["reload-engine", "await-engine", "record-engine"]);
  });

  test("back: the files of before; the engine told again where it was told", () => {
    const { back, reload } = planChange(at, plan(at), undefined, [handler], false);
    expect(back).toMatchObject([
      { do: "restore", path: "/etc/containerd/bulkhead.toml" },
      { do: "take-back", path: main },
      { do: "record-engine", record: undefined },
    ]);
    expect(reload).toMatchObject([{ do: "reload-engine" }, { do: "await-engine", handlers: ["runc"] }]);
  });

  test("an engine that has not read what its files say is told again, although nothing changes", () => {
    const change = plan(at);
    const record: EngineRecord = {
      kind: "containerd",
      own: Object.keys(change.own),
      edited: change.edits.map(({ path, edit }) => ({ path, edit })),
      handlers: ["walled"],
    };
    const told = engine({ ...change.own, [main]: change.edits[0]?.after ?? "" });
    const again = (unread: boolean) =>
      planChange(told, plan(told, [handler], record), record, [handler], unread);
    expect(again(false).load).toEqual([]);
    expect(names(again(true).files)).toEqual(["record-engine"]);
    expect(names(again(true).load)).toEqual(["reload-engine", "await-engine", "record-engine"]);
  });
});

describe("CRI-O is sent SIGHUP and asked", () => {
  const of = (files: Record<string, string>) =>
    engine(files, { kind: "crio", socket: "/run/crio/crio.sock" });
  const other: EngineHandler = { ...handler, name: "other" };
  const asked = (files: Record<string, string>, handlers: EngineHandler[]) =>
    plan(of(files), handlers).reload;
  const hup = (comes: string[], goes: string[]) =>
    expect.objectContaining({ by: "hup", asked: { socket: "/run/crio/crio.sock", comes, goes } });

  test("for what is new, what is another than before, and what goes", () => {
    const { own } = plan(of({}), [handler, other]);
    expect(asked({}, [handler])).toEqual(hup(["walled"], []));
    expect(asked(own, [handler, other])).toEqual(hup([], []));
    expect(asked(own, [handler, { ...other, program: "/opt/x" }])).toEqual(hup(["other"], []));
    expect(asked(own, [handler])).toEqual(hup([], ["other"]));
  });

  test("and restarted at once where an earlier change was not ended", () => {
    const { own } = plan(of({}), [handler]);
    const record: EngineRecord = { kind: "crio", own: Object.keys(own), edited: [], handlers: ["walled"] };
    expect(plan(of(own), [handler], { ...record, pending: true }).reload.by).toBe("restart");
    expect(plan(of(own), [handler], record).reload.by).toBe("hup");
  });

  test("its way back is a restart, for it may have been restarted; SIGHUP where it must not be", () => {
    const change = plan(of({}), [handler]);
    const back = () => planChange(of({}), change, undefined, [handler], false).reload[0];
    expect(back()).toMatchObject({ reload: { by: "restart" } });
    if (change.reload.by === "hup" && change.reload.asked) change.reload.asked.stays = "Cannot restart it";
    expect(back()).toMatchObject({ reload: { by: "hup" } });
    expect(back()).not.toHaveProperty("reload.asked");
  });
});

describe("an entry of imports", () => {
  test.each([
    ["no imports", "version = 2\n"],
    ["an empty array", "imports = []\n[plugins]\n"],
    ["one entry", 'version = 2\nimports = ["/a.toml"]\n'],
    ["a comma at the end", 'imports = ["/a.toml",]\n'],
    [
      "lines, comments and brackets in them",
      'imports = [\n  "/a].toml", # the ] of it\n  "/b.toml" # last\n]\nversion = 2\n',
    ],
    ["an empty file", ""],
    ["imports in a table", 'version = 2\n[x]\nimports = ["/a.toml"]\n'],
  ])("comes and goes without another byte: %s", (_, body) => {
    const after = addImport(body, "/etc/ours.toml");
    expect(after).toContain('"/etc/ours.toml"');
    expect(addImport(after, "/etc/ours.toml")).toBe(after);
    expect(takeBack({ kind: "import", file: "/etc/ours.toml" }, after)).toBe(body);
  });

  test.each([
    ["with another behind ours", 'imports = ["/etc/ours.toml", "/b.toml"]\n', 'imports = ["/b.toml"]\n'],
    [
      "on the line that we wrote",
      'imports = ["/etc/ours.toml", "/b.toml"] # Bulkhead\'s\nversion = 3\n',
      'imports = ["/b.toml"] # Bulkhead\'s\nversion = 3\n',
    ],
    [
      "in lines of their own",
      'imports = [\n  "/a.toml",\n  "/etc/ours.toml",\n  "/b.toml",\n]\n',
      'imports = [\n  "/a.toml",\n  "/b.toml",\n]\n',
    ],
    ["in single quotes", "imports = ['/a.toml','/etc/ours.toml']\n", "imports = ['/a.toml']\n"],
    ["by taking it out themselves", 'imports = ["/b.toml"]\n', 'imports = ["/b.toml"]\n'],
  ])("is taken back where its owner arranged it anew %s, and the rest stays", (_title, today, after) => {
    const taken = takeBack({ kind: "import", file: "/etc/ours.toml" }, today);
    expect(parse(taken)).toEqual(parse(after));
    expect(taken.replace(/\s+/g, "")).toBe(after.replace(/\s+/g, ""));
  });

  test("is refused where it cannot be added alone", () => {
    expect(() => addImport('"imports" = ["/a.toml"]\n', "/etc/ours.toml")).toThrow(
      /without touching the rest/,
    );
  });
});

test("what an engine offers: its list of handlers, or containerd 1's configuration, or nothing said", () => {
  const status = (names: string[], info: Record<string, string>) =>
    offered({ runtimeHandlers: names.map((name) => ({ name })), info } as Parameters<typeof offered>[0]);
  expect(status(["", "runc", "walled"], {})).toEqual(new Set(["runc", "walled"]));
  expect(status([], { config: '{"containerd":{"runtimes":{"walled":{}}}}' })).toEqual(new Set(["walled"]));
  expect(status([], { config: "[x]" })).toBeUndefined();
});
