import { create } from "@bufbuild/protobuf";
import {
  LinuxContainerResourcesSchema,
  NamespaceMode,
  PodSandboxConfigSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { resourcesOf } from "./resources.ts";
import { parseSeccomp } from "./seccomp-profile.ts";
import { sysctlsOf } from "./sysctl.ts";
import { parseGroup, parsePasswd, userOf } from "./user.ts";
import { podIdsOf } from "./user-namespace.ts";

const v1 = { cgroup: "v1", swapAccounting: true, hugetlb: false } as const;
const v2 = { cgroup: "v2", swapAccounting: true, hugetlb: true } as const;
const resources = (fields: object) => create(LinuxContainerResourcesSchema, fields);

/** Whatever is thrown is one of ours, which says what is wrong. */
const refusesCleanly = (run: () => unknown): void => {
  try {
    run();
  } catch (error) {
    if (!(error instanceof RuntimeError)) throw error;
    expect(error.code).toBe("invalid-argument");
    expect(error.message).toMatch(/^Cannot /);
  }
};

describe("resourcesOf()", () => {
  test("passes hugepages, unified values, swap and CPU sets on", () => {
    expect(
      resourcesOf(
        resources({
          cpusetCpus: "0-1,3",
          cpusetMems: "0",
          memoryLimitInBytes: 100n,
          memorySwapLimitInBytes: 150n,
          hugepageLimits: [{ pageSize: "2MB", limit: 4_194_304n }],
          unified: { "memory.high": "90" },
        }),
        v2,
      ),
    ).toEqual({
      cpu: { cpus: "0-1,3", mems: "0" },
      memory: { limit: 100, swap: 150 },
      hugepageLimits: [{ pageSize: "2MB", limit: 4_194_304 }],
      unified: { "memory.high": "90" },
    });
  });

  test.each([
    ["unified values on cgroup v1", { unified: { "memory.high": "1" } }, "this node runs cgroup v1"],
    [
      "hugepages without their cgroup",
      { hugepageLimits: [{ pageSize: "2MB", limit: 1n }] },
      "no hugetlb cgroup",
    ],
    ["a CPU set that is none", { cpusetCpus: "0; rm" }, 'cpuset_cpus to "0; rm"'],
    ["a page size that is none", { hugepageLimits: [{ pageSize: "../2MB", limit: 0n }] }, 'size "../2MB"'],
    [
      "less swap and memory together than memory",
      { memoryLimitInBytes: 100n, memorySwapLimitInBytes: 50n },
      "memory_swap_limit_in_bytes to 50",
    ],
    ["a negative limit", { memoryLimitInBytes: -5n }, "memory_limit_in_bytes to -5"],
  ])("refuses %s by name", (_what, fields, message) => {
    expect(() => resourcesOf(resources(fields), v1)).toThrow(message);
  });

  test("refuses a unified key that is not a file of the cgroup", () => {
    for (const key of ["../memory.max", "memory/max", "cgroup.procs\n", ""])
      expect(() => resourcesOf(resources({ unified: { [key]: "1" } }), v2)).toThrow("cgroup");
  });
});

describe("parseSeccomp()", () => {
  test.each([
    ["not JSON", "{", "JSON"],
    ["no default action", "{}", "defaultAction: "],
    ["an unknown action", '{"defaultAction":"SCMP_ACT_MAYBE"}', "defaultAction: "],
    [
      "a rule without names",
      '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_LOG"},{"action":"SCMP_ACT_LOG"}]}',
      "syscalls[1].names: ",
    ],
    [
      "an argument that a call cannot have",
      '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_LOG","args":[{"index":9,"value":0,"op":"SCMP_CMP_EQ"}]}]}',
      "syscalls[0].args[0].index: ",
    ],
  ])("says of %s which file and which field", (_what, text, field) => {
    expect(() => parseSeccomp("/p.json", text)).toThrow('Cannot use seccomp profile "/p.json": ');
    expect(() => parseSeccomp("/p.json", text)).toThrow(field);
  });

  test("keeps what the runtime specification knows, and nothing else", () => {
    const text =
      '{"defaultAction":"SCMP_ACT_ERRNO","archMap":[],"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":null,"comment":"x"}]}';
    expect(parseSeccomp("/p", text)).toEqual({
      defaultAction: "SCMP_ACT_ERRNO",
      syscalls: [{ names: ["read"], action: "SCMP_ACT_ALLOW" }],
    });
  });

  test("refuses or takes any text, and never fails in another way", () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.json()), (text) => refusesCleanly(() => parseSeccomp("/p", text))),
    );
    const rule = fc.record({ names: fc.anything(), action: fc.anything(), args: fc.anything() });
    fc.assert(
      fc.property(
        fc.record({ defaultAction: fc.constant("SCMP_ACT_LOG"), syscalls: fc.array(rule) }),
        (profile) => refusesCleanly(() => parseSeccomp("/p", JSON.stringify(profile) ?? "")),
      ),
    );
  });
});

describe("passwd and group of an image", () => {
  test("any bytes give accounts with ids below 2^31, in little time (CVE-2025-4437, CVE-2026-47262)", () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 300 }), (text) => {
        for (const { uid, gid } of parsePasswd(text)) expect(Math.max(uid, gid)).toBeLessThan(2 ** 31);
        for (const { gid } of parseGroup(text)) expect(gid).toBeLessThan(2 ** 31);
      }),
    );
    const from = performance.now();
    expect(parsePasswd("root:x:0:0\n".repeat(100_000)).length).toBe(100_000);
    expect(parseGroup(`g:x:1:${"a,".repeat(300_000)}`)[0]?.members.length).toBe(300_000);
    expect(performance.now() - from).toBeLessThan(4_000);
  });

  test("a USER that overflows is refused, and is never root nor a name (CVE-2024-40635, CVE-2026-46680)", () => {
    const passwd = [{ name: "4294967296", uid: 0, gid: 0 }];
    for (const user of ["4294967296", "2147483648", "99999999999999999999", "4294967296:0"])
      expect(() => userOf(undefined, user, { passwd, group: [] })).toThrow("not an id below 2147483648");
  });

  test("any USER is somebody, or refused by name", () => {
    const accounts = {
      passwd: [{ name: "app", uid: 5, gid: 6 }],
      group: [{ name: "g", gid: 7, members: ["app"] }],
    };
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.stringMatching(/^[0-9a-z:+-]{0,12}$/)), (user) =>
        refusesCleanly(() => {
          const { uid, gid } = userOf(undefined, user, accounts);
          // Root only where the number 0, or nothing, was asked for.
          if (uid === 0) expect(user).toMatch(/^0*(:|$)/);
          expect(gid).toBeGreaterThanOrEqual(0);
        }),
      ),
    );
  });
});

describe("sysctlsOf()", () => {
  const own = { net: true, ipc: true };
  test.each([
    "kernel.core_pattern",
    "kernel/core_pattern",
    "net/../kernel/core_pattern",
    "net.ipv4/../../kernel/core_pattern",
    "kernel.shm_rmid_forced=1+kernel.core_pattern",
    "vm.overcommit_memory",
    "kernel.shmmax\nkernel.core_pattern",
    "",
  ])("refuses %j by name (CVE-2022-0811)", (name) => {
    expect(() => sysctlsOf({ [name]: "1" }, own)).toThrow(`Cannot set sysctl "${name}"`);
  });

  test("no name leads to a file outside the namespaces' own, no value to a second line", () => {
    const files = /^(net\/[^.]|kernel\/(shm|msg|sem)|fs\/mqueue\/)/;
    fc.assert(
      fc.property(fc.stringMatching(/^(net|kernel|fs)[./]\S{0,20}$/), fc.string(), (name, value) =>
        refusesCleanly(() => {
          for (const [key, set] of Object.entries(sysctlsOf({ [name]: value }, own))) {
            expect(key.replaceAll(".", "/")).toMatch(files);
            expect(key).not.toContain("..");
            expect(set).not.toMatch(/[\0\n]/);
          }
        }),
      ),
    );
  });
});

describe("podIdsOf()", () => {
  const pod = (userns: object, more: object = {}) =>
    create(PodSandboxConfigSchema, {
      linux: { securityContext: { namespaceOptions: { usernsOptions: userns, ...more } } },
    });
  const range = (hostId: number, length = 65_536, containerId = 0) => [{ hostId, containerId, length }];

  test("is the pod's one range", () => {
    expect(podIdsOf(pod({ uids: range(100_000), gids: range(100_000) }))?.uids).toEqual([
      { containerID: 0, hostID: 100_000, size: 65_536 },
    ]);
    expect(podIdsOf(pod({ mode: NamespaceMode.NODE }))).toBeUndefined();
  });

  test.each([
    ["other ids than uids", { uids: range(1), gids: range(2) }, {}, "the same range"],
    ["a range that does not begin at 0", { uids: range(1, 1, 1), gids: range(1) }, {}, "begin at id 0"],
    ["a range beyond the last id", { uids: range(4_294_967_000), gids: range(1) }, {}, "exceeds"],
    ["an empty range", { uids: range(1, 0), gids: range(1) }, {}, "length 0"],
    ["the node's processes", { uids: range(1), gids: range(1) }, { pid: NamespaceMode.NODE }, "node's pid"],
  ])("refuses %s", (_what, userns, more, message) => {
    expect(() => podIdsOf(pod(userns, more))).toThrow(message);
  });
});
