import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { NetworkPod } from "./network.ts";
import {
  addressesOf,
  type CniNetwork,
  candidates,
  capabilitiesOf,
  executionConfig,
  executionEnv,
  failureOf,
  isIdle,
  networkOf,
  parseResult,
} from "./plan.ts";

const pod: NetworkPod = {
  id: "0123",
  name: "web",
  namespace: "shop",
  uid: "u-1",
  netns: "/run/ns/net",
  dir: "/run/pod",
  portMappings: [],
  cgroupParent: "",
  annotations: {},
};
const none = () => [];
const list = (over: object) =>
  JSON.stringify({ cniVersion: "1.1.0", name: "n", plugins: [{ type: "bridge" }], ...over });

describe("networkOf()", () => {
  test("a single plugin's file is a list of one", () => {
    const text = JSON.stringify({ cniVersion: "0.4.0", name: "n", type: "ptp", mtu: 9000 });
    expect(networkOf("10-n.conf", text, none)).toEqual({
      name: "n",
      cniVersion: "0.4.0",
      plugins: [{ cniVersion: "0.4.0", name: "n", type: "ptp", mtu: 9000 }],
    });
  });

  test.each([
    [["0.4.0", "1.0.0", "1.1.0"], "1.1.0"],
    [["0.4.0", "1.0.0", "2.7.0"], "1.0.0"],
    [["2.7.0"], "2.7.0"],
  ])("of the versions %j it takes %s", (cniVersions, expected) => {
    const network = networkOf("n.conflist", list({ cniVersion: undefined, cniVersions }), none);
    expect(network.cniVersion).toBe(expected);
  });

  test("plugins in the network's own directory are added, unless only inlined ones count", () => {
    const folded = (name: string) => [`{"type":"folded-${name}"}`];
    const types = (over: object) => networkOf("n.conflist", list(over), folded).plugins.map((p) => p.type);
    expect(types({})).toEqual(["bridge", "folded-n"]);
    expect(types({ loadOnlyInlinedPlugins: true })).toEqual(["bridge"]);
  });

  test.each([
    ["a path as type", list({ plugins: [{ type: "../../bin/sh" }] })],
    ["dots as type", list({ plugins: [{ type: ".." }] })],
    ["no plugins", list({ plugins: [] })],
    ["a name with a slash", list({ name: "a/b" })],
    ["no name", list({ name: undefined })],
    ["no JSON", "{"],
    ["another kind of JSON", "[1]"],
  ])("refuses %s", (_, text) => {
    expect(() => networkOf("n.conflist", text, none)).toThrow();
  });

  test("text of any kind never does worse than an error", () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.json()), (text) => {
        try {
          const { plugins } = networkOf("n.conflist", text, none);
          expect(plugins.length).toBeGreaterThan(0);
        } catch (error) {
          expect(error).toBeInstanceOf(Error);
        }
      }),
    );
  });
});

describe("executionConfig()", () => {
  const network: CniNetwork = { name: "n", cniVersion: "1.0.0", plugins: [] };

  test("name and version of the list win, and the previous result goes along", () => {
    const plugin = { type: "x", name: "other", cniVersion: "0.1.0", own: [1] };
    expect(JSON.parse(executionConfig(network, plugin, {}, { ips: [] }))).toEqual({
      type: "x",
      own: [1],
      name: "n",
      cniVersion: "1.0.0",
      prevResult: { ips: [] },
    });
  });

  test("a plugin gets the capabilities it declared, and no others", () => {
    const plugin = { type: "x", capabilities: { portMappings: true, bandwidth: false, toString: true } };
    const capabilities = { portMappings: [1], bandwidth: {}, dns: {} };
    expect(JSON.parse(executionConfig(network, plugin, capabilities, undefined))).toEqual({
      type: "x",
      name: "n",
      cniVersion: "1.0.0",
      runtimeConfig: { portMappings: [1] },
    });
  });
});

describe("executionEnv()", () => {
  test("tells plugins the pod by CNI_ARGS", () => {
    expect(executionEnv("ADD", ["/a", "/b"], pod)).toEqual({
      CNI_COMMAND: "ADD",
      CNI_PATH: "/a:/b",
      CNI_CONTAINERID: "0123",
      CNI_NETNS: "/run/ns/net",
      CNI_IFNAME: "eth0",
      CNI_ARGS:
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=0123;K8S_POD_UID=u-1",
    });
  });
});

describe("capabilitiesOf()", () => {
  test("only mappings with a host port are mapped", () => {
    const mapping = { protocol: "tcp" as const, containerPort: 80, hostPort: 8080, hostIp: "" };
    const portMappings = [mapping, { ...mapping, hostPort: 0 }, { ...mapping, hostIp: "127.0.0.1" }];
    expect(capabilitiesOf({ ...pod, portMappings }).portMappings).toEqual([
      { hostPort: 8080, containerPort: 80, protocol: "tcp" },
      { hostPort: 8080, containerPort: 80, protocol: "tcp", hostIP: "127.0.0.1" },
    ]);
    expect(capabilitiesOf(pod)).not.toHaveProperty("portMappings");
  });

  test("portmap is let be where there is nothing to map, and nowhere else", () => {
    const portmap = { type: "portmap", capabilities: { portMappings: true } };
    const mapped = {
      ...pod,
      portMappings: [{ protocol: "tcp" as const, containerPort: 80, hostPort: 80, hostIp: "" }],
    };
    expect(isIdle(portmap, pod, {})).toBe(true);
    expect(
      isIdle(portmap, { ...mapped, portMappings: [{ ...mapped.portMappings[0]!, hostPort: 0 }] }, {}),
    ).toBe(true);
    expect(isIdle(portmap, mapped, {})).toBe(false);
    // Without one before it, it fails, and its user is to hear of that.
    expect(isIdle(portmap, pod, undefined)).toBe(false);
    expect(isIdle({ ...portmap, capabilities: {} }, pod, {})).toBe(false);
    expect(isIdle({ ...portmap, type: "my-portmap" }, pod, {})).toBe(false);
  });

  test("a bandwidth is told for the direction that has one", () => {
    expect(capabilitiesOf(pod).bandwidth).toBeUndefined();
    expect(capabilitiesOf({ ...pod, bandwidth: { egress: 1500 } }).bandwidth).toEqual({
      egressRate: 1500,
      egressBurst: 2 ** 31 - 1,
    });
  });
});

describe("addressesOf()", () => {
  test("takes those of the pod's own interface, IPv4 first", () => {
    const result = {
      interfaces: [{ name: "bh0" }, { name: "eth0", sandbox: "/ns" }, { name: "eth1", sandbox: "/ns" }],
      ips: [
        { address: "fd00::2/64", interface: 1 },
        { address: "10.0.0.1/24", interface: 0 },
        { address: "10.1.0.9/24", interface: 2 },
        { address: "10.0.0.2/24", interface: 1 },
      ],
    };
    expect(addressesOf(parseResult(JSON.stringify(result)))).toEqual(["10.0.0.2", "fd00::2"]);
  });

  test("understands results older than 0.3.0", () => {
    expect(addressesOf({ ip4: { ip: "10.0.0.2/24" }, ip6: { ip: "fd00::2/64" } })).toEqual([
      "10.0.0.2",
      "fd00::2",
    ]);
  });

  test("a hostile result gives addresses or an error, never anything else", () => {
    const address = fc.oneof(
      fc.string(),
      fc.ipV4(),
      fc.ipV6(),
      fc.constant("10.0.0.1/24"),
      fc.constant(null),
    );
    const shape = fc.record(
      {
        interfaces: fc.oneof(
          fc.jsonValue(),
          fc.array(fc.record({ name: fc.string(), sandbox: fc.string() })),
        ),
        ips: fc.oneof(
          fc.jsonValue(),
          fc.array(fc.record({ address, interface: fc.oneof(fc.integer(), fc.double(), fc.constant(null)) })),
        ),
        ip4: fc.oneof(fc.jsonValue(), fc.record({ ip: address })),
      },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string(),
          fc.json(),
          shape.map((value) => JSON.stringify(value)),
        ),
        (text) => {
          let ips: string[];
          try {
            ips = addressesOf(parseResult(text));
          } catch (error) {
            expect(error).toBeInstanceOf(Error);
            return;
          }
          for (const ip of ips) expect(ip).toMatch(/^[0-9a-fA-F.:%\w]+$/);
        },
      ),
      { numRuns: 500 },
    );
  });
});

describe("failureOf()", () => {
  test.each([
    ["message and details", '{"code":7,"msg":"bad","details":"very"}', "", { code: 7, message: "bad: very" }],
    ["stderr when there is no error object", "panic", "it broke\n", { message: "it broke" }],
    ["stdout when stderr is empty", "no JSON", "", { message: "no JSON" }],
    ["silence", "", "", { message: "it said nothing" }],
  ])("reports %s", (_, stdout, stderr, expected) => {
    expect(failureOf(stdout, stderr)).toEqual(expected);
  });

  test("whatever was printed becomes a message of bounded length", () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.json()), fc.string(), (stdout, stderr) => {
        expect(failureOf(stdout, stderr).message.length).toBeGreaterThan(0);
      }),
    );
  });
});

test("candidates() are sorted by name; other files and hidden ones are no configuration", () => {
  expect(
    candidates(["b.conf", "README", ".a.conf", "a.conflist", "B.json", "a.conf.swp", "10-x.conflist"]),
  ).toEqual(["10-x.conflist", "B.json", "a.conflist", "b.conf"]);
});
