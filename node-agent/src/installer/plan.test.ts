import { createHash } from "node:crypto";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { describe, expect, test } from "vitest";
import { handlerFile, installed, settingsDirectory } from "./files.ts";
import {
  type Facts,
  planCollect,
  planEngine,
  planEngineRollback,
  planKubelet,
  planLeave,
  planNodeRemoval,
  planProfile,
  planProfileRollback,
  planRemoval,
  planStale,
} from "./plan.ts";

const want = { version: "2", config: "config 2", unit: "unit", named: {} };
const empty: Facts = {
  record: { version: 1, entries: [], profiles: {} },
  current: undefined,
  versions: [],
  drifted: ["bin/node", "runtime/main.mjs"],
  files: new Map(),
  unitActive: false,
  enabled: false,
  edited: new Set(),
  unread: new Set(),
  kubelet: {
    unit: "kubelet.service",
    view: {
      argv: ["kubelet", "--config=/k"],
      flagFiles: [],
      config: { path: "/k", body: "containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n" },
    },
    setting: { value: "unix:///run/containerd/containerd.sock", from: "config", files: ["/k"] },
  },
};
const serving: Facts = {
  ...empty,
  record: {
    version: 1,
    entries: [{ kind: "link", path: installed.wanted, target: installed.unit, former: null }],
    kubelet: { unit: "kubelet.service", former: "unix:///run/containerd/containerd.sock", files: ["/k"] },
    profiles: { standard: { revision: "aaaaaaaaaa", files: { [handlerFile("standard")]: "good" } } },
  },
  current: "2",
  versions: ["2"],
  drifted: [],
  files: new Map([
    [paths.config, "config 2"],
    [installed.unit, "unit"],
    [handlerFile("standard"), "good"],
  ]),
  unitActive: true,
  enabled: true,
};
const names = (steps: { do: string }[]): string[] => steps.map((step) => step.do);

describe("the runtime", () => {
  test("comes to a fresh node: staged, linked, configured, enabled, started, awaited", () => {
    expect(names(planEngine(empty, want))).toEqual([
      "stage",
      "link",
      "write",
      "write",
      "link",
      "daemon-reload",
      "start-runtime",
      "await-runtime",
    ]);
  });

  test("is only asked whether it is there when nothing differs", () => {
    expect(planEngine(serving, want)).toEqual([{ do: "await-runtime" }]);
  });

  describe("when somebody edits its unit or its configuration", () => {
    const entry = (path: string, body: string) => ({
      kind: "file" as const,
      path,
      sha256: createHash("sha256").update(body).digest("hex"),
      former: null,
    });
    const edited = (unread: string[]): Facts => ({
      ...serving,
      record: {
        ...serving.record,
        entries: [entry(installed.unit, want.unit), entry(paths.config, want.config)],
      },
      files: new Map([
        [installed.unit, "edited"],
        [paths.config, "edited"],
      ]),
      edited: new Set([installed.unit, paths.config]),
      unread: new Set(unread),
    });
    const repair = ["write", "write", "daemon-reload"];

    test("is not restarted when it was started before the edit", () => {
      expect(names(planEngine(edited([installed.unit, paths.config]), want))).toEqual([
        ...repair,
        "await-runtime",
      ]);
    });

    test("is restarted when it was started after the edit", () => {
      expect(names(planEngine(edited([paths.config]), want))).toEqual([
        ...repair,
        "start-runtime",
        "await-runtime",
      ]);
    });

    test("is restarted when what is wanted is new as well", () => {
      const facts = edited([installed.unit, paths.config]);
      expect(names(planEngine(facts, { ...want, config: "config 3" }))).toContain("start-runtime");
    });

    test("is enabled again, and not restarted, when somebody disabled it", () => {
      expect(names(planEngine({ ...serving, enabled: false }, want))).toEqual([
        "link",
        "daemon-reload",
        "await-runtime",
      ]);
    });
  });

  describe("with files that its configuration names", () => {
    const key = `${settingsDirectory}/prod.pub`;
    const entry = (path: string) => ({ kind: "file" as const, path, sha256: "", former: null });
    const withKey = (body: string): Facts => ({
      ...serving,
      record: { ...serving.record, entries: [...serving.record.entries, entry(key)] },
      files: new Map([...serving.files, [key, body]]),
    });
    const restart = { do: "start-runtime", restart: true };

    test("has a new or changed one before it is restarted", () => {
      for (const facts of [serving, withKey("old")])
        expect(planEngine(facts, { ...want, named: { [key]: "new" } })).toEqual([
          { do: "write", path: key, body: "new" },
          restart,
          { do: "await-runtime" },
        ]);
      expect(planEngine(withKey("new"), { ...want, named: { [key]: "new" } })).toEqual([
        { do: "await-runtime" },
      ]);
    });

    test("loses one when it serves without", () => {
      expect(planEngine(withKey("old"), want)).toEqual([
        { do: "await-runtime" },
        { do: "restore", path: key },
      ]);
    });

    test("gets the former ones back where it did not come up", () => {
      const failed = { ...want, named: { [key]: "new" } };
      expect(planEngineRollback(withKey("old"), failed)).toContainEqual({
        do: "write",
        path: key,
        body: "old",
      });
      expect(planEngineRollback(serving, failed)).toContainEqual({ do: "restore", path: key });
    });
  });

  test("is started when it stands still", () => {
    expect(planEngine({ ...serving, unitActive: false }, want)).toEqual([
      { do: "start-runtime", restart: false },
      { do: "await-runtime" },
    ]);
  });

  test("is restarted for a new version, a new configuration or a damaged program of its own", () => {
    const restart = { do: "start-runtime", restart: true };
    expect(planEngine({ ...serving, drifted: ["bin/node"] }, { ...want, version: "3" })).toContainEqual(
      restart,
    );
    expect(planEngine(serving, { ...want, config: "other" })).toContainEqual(restart);
    expect(planEngine({ ...serving, drifted: ["runtime/main.mjs"] }, want)).toContainEqual(restart);
  });

  test("leaves a wall's damaged program to the profile behind it, once the version is there", () => {
    expect(names(planEngine({ ...serving, drifted: ["bin/runsc"] }, want))).toEqual(["await-runtime"]);
    expect(planEngine({ ...serving, drifted: ["bin/runsc"] }, { ...want, version: "3" })).toContainEqual({
      do: "stage",
      version: "3",
      files: ["bin/runsc"],
    });
  });

  test("goes back to the former version, its configuration and unit", () => {
    expect(planEngineRollback(serving, { ...want, version: "3", config: "config 3" })).toEqual([
      { do: "link", path: installed.current, target: "versions/2" },
      { do: "write", path: paths.config, body: "config 2" },
      { do: "write", path: installed.unit, body: "unit" },
      { do: "daemon-reload" },
      { do: "start-runtime", restart: true },
      { do: "await-runtime" },
    ]);
  });

  test("goes back to our own text where somebody had edited or removed it: theirs never served", () => {
    const steps = planEngineRollback(
      {
        ...serving,
        files: new Map([[paths.config, "edited"]]),
        edited: new Set([paths.config, installed.unit]),
      },
      want,
    );
    expect(steps).toContainEqual({ do: "write", path: paths.config, body: "config 2" });
    expect(steps).toContainEqual({ do: "write", path: installed.unit, body: "unit" });
    expect(names(steps)).not.toContain("purge");
  });

  test("leaves nothing of a first install that failed", () => {
    expect(names(planEngineRollback(empty, want))).toEqual(["stop-runtime", "purge"]);
  });
});

describe("a profile", () => {
  const file = handlerFile("standard");
  const plan = {
    name: "standard",
    revision: "bbbbbbbbbb",
    files: { [file]: "new" },
    check: ["/p/runc", "--version"],
    version: "2",
    programs: ["bin/runc"],
  };

  test("has its program checked before its handler is written, and is awaited", () => {
    expect(planProfile(serving, plan)).toEqual([
      { do: "check-program", argv: ["/p/runc", "--version"] },
      { do: "write", path: file, body: "new" },
      { do: "await-handler", handler: "standard", revision: "bbbbbbbbbb", present: true },
    ]);
  });

  test("needs nothing while its handler is as it should be", () => {
    expect(planProfile(serving, { ...plan, files: { [file]: "good" } })).toEqual([]);
  });

  test("has its own damaged program put back and checked, and none of another's", () => {
    const good = { ...plan, files: { [file]: "good" } };
    expect(planProfile({ ...serving, drifted: ["bin/runc", "bin/runsc"] }, good)).toEqual([
      { do: "stage", version: "2", files: ["bin/runc"] },
      { do: "check-program", argv: ["/p/runc", "--version"] },
    ]);
  });

  test("loses files that it has no more once the new handler is loaded; those that a former revision's pods read stay", () => {
    const former = "/etc/former.toml";
    const read = "/etc/bulkhead/kata/standard.aaaaaaaaaa.toml";
    const files = { [handlerFile("standard")]: "good", [former]: "old", [read]: "old" };
    const profiles = { standard: { revision: "aaaaaaaaaa", files } };
    const facts = { ...serving, record: { ...serving.record, profiles } };
    const steps = planProfile(facts, { ...plan, files: { [file]: "new", "/etc/new.toml": "new" } });
    expect(names(steps)).toEqual(["check-program", "write", "write", "await-handler", "restore"]);
    expect(steps.at(-1)).toEqual({ do: "restore", path: former });
  });

  test("goes back to the revision that served, and what only the new one brought goes", () => {
    const files = { [file]: "new", "/etc/bulkhead/runsc/standard.toml": "new" };
    expect(planProfileRollback(serving, { ...plan, files })).toEqual([
      { do: "write", path: file, body: "good" },
      { do: "restore", path: "/etc/bulkhead/runsc/standard.toml" },
      { do: "await-handler", handler: "standard", revision: "aaaaaaaaaa", present: true },
    ]);
  });

  test("that never served is taken away when it fails", () => {
    expect(planProfileRollback(empty, plan)).toEqual([
      { do: "restore", path: file },
      { do: "await-handler", handler: "standard", revision: "", present: false },
    ]);
  });

  test("is removed once, not again, and what is left of its pods goes while its handler is loaded", () => {
    const steps = planRemoval(serving, "standard", [file]);
    expect(names(steps)).toEqual(["remove-dead-pods", "restore", "await-handler"]);
    expect(steps[0]).toEqual({ do: "remove-dead-pods", handlers: ["standard"] });
    expect(planRemoval(empty, "standard", [file])).toEqual([]);
  });

  test("on the node's engine is removed with what is left of its pods there", () => {
    expect(planNodeRemoval(serving, "standard", [file])).toEqual([
      { do: "remove-dead-pods", handlers: ["standard"], socket: "/run/containerd/containerd.sock" },
      { do: "restore", path: file },
    ]);
  });
});

describe("the kubelet", () => {
  test("is pointed at us, and its former endpoint kept", () => {
    expect(planKubelet(empty)).toEqual([
      {
        do: "point-kubelet",
        unit: "kubelet.service",
        former: "unix:///run/containerd/containerd.sock",
        edits: [
          {
            path: "/k",
            before: "containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n",
            after: "containerRuntimeEndpoint: unix:///run/bulkhead/cri.sock\n",
          },
        ],
      },
    ]);
  });

  test("that somebody pointed elsewhere is pointed at us again, the first engine still remembered", () => {
    const view = {
      argv: ["kubelet"],
      flagFiles: [],
      config: { path: "/k", body: "containerRuntimeEndpoint: unix:///z\n" },
    };
    const setting = { value: "unix:///z", from: "config" as const, files: ["/k"] };
    const [step] = planKubelet({ ...serving, kubelet: { unit: "kubelet.service", view, setting } });
    expect(step).toMatchObject({ former: "unix:///run/containerd/containerd.sock" });
  });

  test("that does not run is left alone", () => {
    expect(planKubelet({ ...empty, kubelet: undefined })).toEqual([]);
  });
});

describe("leaving", () => {
  test("gives the kubelet back before the runtime stops, and purges last", () => {
    expect(names(planLeave(serving))).toEqual([
      "remove-dead-pods",
      "return-kubelet",
      "stop-runtime",
      "purge",
    ]);
  });

  test("does nothing on a node that was never touched", () => {
    expect(planLeave(empty)).toEqual([]);
  });
});

describe("versions", () => {
  test("go when neither the link, a handler nor a process names them", () => {
    const facts = { ...serving, versions: ["0", "1", "2"] };
    expect(planCollect(facts, "2", new Set(["0"]))).toEqual([{ do: "collect", version: "1" }]);
  });

  test("stay while a handler's file names them", () => {
    const files = new Map([...serving.files, ["/h", "binary: /opt/bulkhead/versions/1/bin/runc"]]);
    expect(planCollect({ ...serving, files, versions: ["1", "2"] }, "2", new Set())).toEqual([]);
  });
});

test("a revision's own files stay while it serves or a pod of it is known, and go after that", () => {
  const file = (path: string) => ({ kind: "file", path, sha256: "", former: null }) as const;
  const runsc = (revision: string): string => `/etc/bulkhead/runsc/sandboxed.${revision}.toml`;
  const profiles = {
    sandboxed: { revision: "b", files: { [runsc("b")]: "", [handlerFile("sandboxed")]: "" } },
  };
  const entries = [runsc("a"), runsc("b"), runsc("c"), paths.config, handlerFile("gone")].map(file);
  const facts = { record: { ...empty.record, entries, profiles } };
  const records = JSON.stringify({ handler: { configPath: runsc("a") } });
  expect(planStale(facts, records)).toEqual([{ do: "restore", path: runsc("c") }]);
  expect(planStale(facts, "")).toEqual([
    { do: "restore", path: runsc("a") },
    { do: "restore", path: runsc("c") },
  ]);
});
