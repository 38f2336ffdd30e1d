import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import fc from "fast-check";
import { load as parseYaml } from "js-yaml";
import { describe, expect, test } from "vitest";
import { failureOf as runtimeFailure } from "../../runtime/src/handler/oci/command.ts";
import { parseBootstrap } from "../../runtime/src/handler/shim/bootstrap.ts";
import { parseMemoryUsage } from "../../runtime/src/handler/shim/runsc-control.ts";
import { parseChallenges } from "../../runtime/src/image/auth.ts";
import { findCredentials, parseDockerConfig } from "../../runtime/src/image/docker-config.ts";
import { retryAfter } from "../../runtime/src/image/endpoint-error.ts";
import { parseHostsFile } from "../../runtime/src/image/hosts-toml.ts";
import { nextPage } from "../../runtime/src/image/link.ts";
import { choosePlatform, parseConfig, parseManifest } from "../../runtime/src/image/manifest.ts";
import { formatReference, parseReference } from "../../runtime/src/image/reference.ts";
import { parseReport } from "../../runtime/src/monitor/conmon.ts";
import {
  addressesOf,
  executionConfig,
  networkOf,
  parseResult,
  failureOf as pluginFailure,
} from "../../runtime/src/network/plan.ts";
import { CdiSpec, cdiEdits } from "../../runtime/src/spec/cdi.ts";
import { parseSeccomp } from "../../runtime/src/spec/seccomp-profile.ts";
import { parseGroup, parsePasswd, userOf } from "../../runtime/src/spec/user.ts";
import { huge, mutated } from "./mutate.ts";
import * as samples from "./samples.ts";

/* Every parser of what a stranger, an image, a registry or a program says: it takes the text or refuses it in order. */

type Parser = {
  name: string;
  samples: readonly string[];
  /** Bytes that it may be given at most. */
  limit: number;
  parse(text: string): unknown;
};

const mebi = 1024 * 1024;
const bytes = (text: string): Buffer => Buffer.from(text, "utf8");

const parsers: Parser[] = [
  {
    name: "image references",
    samples: samples.references,
    limit: 64 * 1024,
    parse: (text) => {
      const parsed = parseReference(text);
      expect(parseReference(formatReference(parsed))).toEqual(parsed);
    },
  },
  {
    name: "manifests and indexes",
    samples: samples.manifests,
    limit: 4 * mebi,
    parse: (text) => {
      const parsed = parseManifest(bytes(text), "");
      if (parsed.kind === "index") choosePlatform(parsed.index, { os: "linux", architecture: "amd64" });
    },
  },
  {
    name: "image configurations",
    samples: samples.configurations,
    limit: 8 * mebi,
    parse: (text) => {
      const { user, config } = parseConfig(bytes(text));
      expect(user.uid ?? 0).toBeLessThan(2 ** 31);
      expect(JSON.stringify(config)).not.toContain("\\u0000");
    },
  },
  {
    name: "WWW-Authenticate",
    samples: samples.challenges,
    limit: 64 * 1024,
    parse: (text) => expect(parseChallenges(text).length).toBeLessThan(8192),
  },
  {
    name: "Retry-After",
    samples: samples.retryAfters,
    limit: 64 * 1024,
    parse: (text) => expect(retryAfter(text) ?? 0).toBeGreaterThanOrEqual(0),
  },
  { name: "Link", samples: samples.links, limit: 64 * 1024, parse: (text) => nextPage(text, "r") },
  {
    name: "docker config.json",
    samples: samples.dockerConfigs,
    limit: mebi,
    parse: (text) => findCredentials(parseDockerConfig(text), { host: "a.dkr.ecr.amazonaws.com", path: "p" }),
  },
  { name: "hosts.toml", samples: samples.hostsTomls, limit: mebi, parse: (text) => parseHostsFile(text) },
  {
    name: "CNI networks",
    samples: samples.networks,
    limit: mebi,
    parse: (text) => networkOf(text.includes('"plugins"') ? "10.conflist" : "10.conf", text, () => []),
  },
  {
    name: "CNI results",
    samples: samples.cniResults,
    limit: mebi,
    parse: (text) => {
      const result = parseResult(text);
      for (const address of addressesOf(result)) expect(address).toMatch(/^[0-9a-fA-F:.]+$/);
      const plugin = { type: "portmap" };
      // It is what the next plugin is told.
      JSON.parse(executionConfig({ name: "n", cniVersion: "1.0.0", plugins: [plugin] }, plugin, {}, result));
    },
  },
  {
    name: "a plugin's failure",
    samples: samples.cniErrors,
    limit: mebi,
    parse: (text) => expect(pluginFailure(text, text).message.length).toBeGreaterThan(0),
  },
  {
    name: "an OCI runtime's failure",
    samples: samples.cniErrors,
    limit: mebi,
    parse: (text) => runtimeFailure(text),
  },
  {
    name: "seccomp profiles",
    samples: samples.seccompProfiles,
    limit: 4 * mebi,
    parse: (text) => parseSeccomp("/profile.json", text),
  },
  {
    name: "CDI files",
    samples: samples.cdiFiles,
    limit: mebi,
    parse: (text) => {
      const parsed = CdiSpec.safeParse(parseYaml(text, { maxAliases: 100 }));
      if (!parsed.success) return;
      cdiEdits(["nvidia.com/gpu=0"], [{ path: "f", priority: 0, spec: parsed.data }], []);
    },
  },
  {
    name: "passwd",
    samples: samples.passwds,
    limit: 4 * mebi,
    parse: (text) => {
      const passwd = parsePasswd(text);
      for (const { uid, gid } of passwd) expect(Math.max(uid, gid)).toBeLessThan(2 ** 31);
      // Nobody becomes root but by the name of root or by 0.
      if (passwd.some(({ name }) => name === "www-data"))
        userOf(undefined, "www-data", { passwd, group: [] });
    },
  },
  {
    name: "group",
    samples: samples.groups,
    limit: 4 * mebi,
    parse: (text) => {
      const passwd = parsePasswd(samples.passwds[0] ?? "");
      for (const gid of userOf(undefined, "www-data", { passwd, group: parseGroup(text) }).groups)
        expect(gid).toBeLessThan(2 ** 31);
    },
  },
  {
    name: "a shim's reply",
    samples: samples.bootstraps,
    limit: 64 * 1024,
    parse: (text) => parseBootstrap(bytes(text)),
  },
  {
    name: "a sandbox's answer",
    samples: samples.memoryAnswers,
    limit: mebi,
    parse: (text) => expect(parseMemoryUsage(text)).toBeTypeOf("number"),
  },
  {
    name: "a monitor's report",
    samples: samples.monitorReports,
    limit: 64 * 1024,
    parse: (text) => parseReport(text),
  },
];

/** Syntax errors of JSON, YAML and TOML are refusals: whoever calls says of which file. */
const isRefusal = (error: unknown): boolean =>
  error instanceof RuntimeError ||
  error instanceof SyntaxError ||
  (error instanceof Error && ["YAMLException", "TomlError", "ZodError"].includes(error.name)) ||
  (error instanceof Error && error.constructor.name === "TomlError");

/** Seconds of processor time: the machine may have other things to do. */
const spent = (work: () => void): number => {
  const before = process.cpuUsage();
  work();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1e6;
};

const takeOrRefuse = ({ parse }: Parser, text: string): void => {
  try {
    parse(text);
  } catch (error) {
    if (!isRefusal(error)) throw error;
  }
};

describe.each(parsers)("$name", (parser) => {
  test("as they are in real life are taken", () => {
    for (const sample of parser.samples) parser.parse(sample);
  });

  test("with anything changed are taken or refused", () => {
    fc.assert(
      fc.property(mutated(parser.samples), (text) => {
        const seconds = spent(() => takeOrRefuse(parser, text));
        expect(seconds, text.slice(0, 200)).toBeLessThan(2);
      }),
      { numRuns: 300 },
    );
  });

  test("of the greatest length are taken or refused in time", () => {
    // What a MiB takes, four take four times: bounds.host.test.ts has the whole of some.
    for (const text of huge(parser.samples, Math.min(parser.limit, mebi))) {
      const seconds = spent(() => takeOrRefuse(parser, text));
      expect(seconds, text.slice(0, 40)).toBeLessThan(5);
    }
  }, 60_000);
});
