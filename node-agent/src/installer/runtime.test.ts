import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { pino } from "pino";
import { Registry } from "prom-client";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Installer } from "./context.ts";
import { installed } from "./files.ts";
import { Ledger } from "./ledger.ts";
import { installerMetrics } from "./metrics.ts";
import { Ownership } from "./ownership.ts";
import { OwnRuntime } from "./runtime.ts";

/** What becomes of settings that cannot be used. The host is a directory, and its systemctl a fake. */

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "bulkhead-runtime-"));
});
afterEach(() => rmSync(root, { recursive: true }));

const problem = "Cannot use runtime.config: images.pined: unknown key";
const profile = { name: "standard", revision: "0123456789" } as DesiredProfile;
const signal = AbortSignal.timeout(10_000);

const installer = (active: boolean): Installer & { systemctl: string[] } => {
  const systemctl: string[] = [];
  const host: Partial<Installer["host"]> = {
    at: (path: string) => join(root, path),
    real: (path: string) => path,
    run: async (argv) => {
      systemctl.push(argv.slice(1).join(" "));
      return { code: 0, stdout: active ? "active\n" : "inactive\n", stderr: "" };
    },
  };
  const log = pino({ level: "silent" });
  const metrics = installerMetrics(new Registry());
  const hostFacts = {
    kernel: "",
    arch: "amd64",
    vm: { kvm: { why: "" } },
    view: { bootId: "now" },
  } as unknown as Installer["hostFacts"];
  return {
    ...({ host, hostFacts, metrics, log, systemctl } as unknown as Installer & { systemctl: string[] }),
    ownership: new Ownership(host as Installer["host"], installed.record),
    manifest: { version: "1.2", files: {} } as unknown as Installer["manifest"],
    check: { drifted: async () => [] } as unknown as Installer["check"],
    ledger: new Ledger({ instance: "i", hostFacts, metrics, log }),
    runtimeSettings: { problem },
    runtimeProxy: {},
    runtimeFiles: async () => ({}),
  };
};

const told = ({ ledger }: Installer) => {
  ledger.publish();
  return ledger.report().status;
};

test("settings that cannot be used change nothing on a new node, whose profiles fail by the key's name", async () => {
  const use = installer(false);
  use.ledger.apply("standard", { on: "wanted", revision: profile.revision });
  expect(await new OwnRuntime(use).install([profile], signal)).toBe(false);
  expect(told(use)).toMatchObject({
    conditions: [
      { type: "RuntimeConfigured", status: "False", reason: "InvalidRuntimeConfig", message: problem },
    ],
    profiles: [{ name: "standard", phase: "Failed", reason: "InvalidRuntimeConfig" }],
  });
  expect(readdirSync(root)).toEqual([]);
});

test("where this version runs already it goes on with what it was told, and is told of once", async () => {
  const use = installer(true);
  await use.ownership.update(() => ({
    entries: [{ kind: "file", path: installed.unit, sha256: "", former: null }],
  }));
  mkdirSync(join(root, dirname(installed.current)), { recursive: true });
  symlinkSync("versions/1.2", join(root, installed.current));
  mkdirSync(join(root, dirname(paths.config)), { recursive: true });
  writeFileSync(join(root, paths.config), "former");
  const runtime = new OwnRuntime(use);
  expect(await runtime.install([profile], signal)).toBe(true);
  expect(await runtime.install([profile], signal)).toBe(true);
  expect(use.ledger.report().happenings.map(({ reason }) => reason)).toEqual(["InvalidRuntimeConfig"]);
  expect(use.systemctl.filter((line) => /start/.test(line))).toEqual([]);
  expect(existsSync(join(root, installed.unit))).toBe(false);
});
