import { execFileSync, spawn } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { MountFlags } from "../linux/linux.ts";
import { createLinux } from "../linux/linux-ffi.ts";
import { createNetwork } from "./cni.ts";
import { isPinned } from "./namespaces.ts";
import type { NetworkPod } from "./network.ts";

const cache = process.env.BULKHEAD_CACHE ?? join(homedir(), ".cache/bulkhead");
const plugins = process.env.BULKHEAD_CNI_BIN ?? join(cache, "bin/cni");
const BRIDGE = "bhnettest0";
const NETWORK = "bulkhead-network-test";

const linux = createLinux();
const never = new AbortController().signal;
let root: string;
let confDir: string;
let binDir: string;
let pods = 0;
const open: NetworkPod[] = [];

const network = () =>
  createNetwork(
    {
      ...{ binDirs: [binDir, plugins], confDir, pluginTimeoutMs: 20_000 },
      ...{ attachments: join(root, "attachments"), left: join(root, "left") },
    },
    linux,
  );

beforeAll(async () => {
  root = mkdtempSync("/tmp/bh-network-");
  await linux.mount("tmpfs", root, "tmpfs", 0, "");
  await linux.mount("", root, "", MountFlags.PRIVATE, "");
});
beforeEach(() => {
  [confDir, binDir] = ["conf", "bin"].map((name) => join(root, `${name}-${pods}`)) as [string, string];
  for (const dir of [confDir, binDir]) mkdirSync(dir, { recursive: true });
});
afterEach(async () => {
  for (const pod of open.splice(0)) {
    await network()
      .detach(pod, undefined, AbortSignal.timeout(20_000))
      .catch(() => {});
    await network().removeNamespaces(join(pod.dir, "ns"));
  }
});
afterAll(async () => {
  await linux.umount(root, MountFlags.DETACH);
  rmSync(root, { recursive: true });
  if (existsSync(`/sys/class/net/${BRIDGE}`)) execFileSync("ip", ["link", "del", BRIDGE]);
});

const bridge = () => ({
  type: "bridge",
  bridge: BRIDGE,
  isGateway: true,
  ipMasq: true,
  hairpinMode: true,
  ipam: {
    type: "host-local",
    dataDir: join(root, "ipam"),
    ranges: [[{ subnet: "10.213.77.0/24" }], [{ subnet: "fd00:213:77::/64" }]],
    routes: [{ dst: "0.0.0.0/0" }],
  },
});
const portmap = { type: "portmap", capabilities: { portMappings: true }, snat: true };
const configure = (list: object[], name = "10-test.conflist", over: object = {}) =>
  writeFileSync(
    join(confDir, name),
    JSON.stringify({ cniVersion: "1.0.0", name: NETWORK, plugins: list, ...over }),
  );
/** A plugin of the test's own, in shell: it sees CNI's environment and standard input. */
const plugin = (name: string, script: string) => {
  writeFileSync(join(binDir, name), `#!/bin/sh\n${script}\n`);
  chmodSync(join(binDir, name), 0o755);
};

const makePod = async (over: Partial<NetworkPod> = {}): Promise<NetworkPod> => {
  const id = `bhtest${process.pid}x${pods++}`;
  const dir = join(root, id);
  mkdirSync(dir);
  const { net } = await network().createNamespaces(join(dir, "ns"), ["net", "ipc", "uts"], id);
  const pod: NetworkPod = {
    ...{ id, name: "web", namespace: "shop", uid: "u-1", netns: net!, dir },
    ...{ portMappings: [], cgroupParent: "", annotations: {} },
    ...over,
  };
  open.push(pod);
  return pod;
};
const inside = (pod: NetworkPod, ...command: string[]) =>
  execFileSync("nsenter", [`--net=${pod.netns}`, ...command], { encoding: "utf8" });
/** Rules of all tables. */
const rules = () =>
  ["iptables-save", "ip6tables-save"].map((save) => execFileSync(save, { encoding: "utf8" })).join("");
/** What a boot does by itself: plugins have no address any more to find such a rule by. */
const forgetMasquerade = (id: string) => {
  const lines = rules().split("\n");
  for (const line of lines.filter((each) => each.startsWith("-A POSTROUTING") && each.includes(id))) {
    const tables = /-s [^ ]*:/.test(line) ? "ip6tables" : "iptables";
    const chain = line.split(" ").at(-1) ?? "";
    execFileSync("sh", ["-ec", `${tables} -t nat ${line.replace("-A", "-D")}`]);
    for (const flag of ["-F", "-X"]) execFileSync(tables, ["-t", "nat", flag, chain]);
  }
};
const ipam = () => {
  const dir = join(root, "ipam", NETWORK);
  return existsSync(dir) ? readdirSync(dir).filter((name) => /^[\da-f.:]+$/.test(name)) : [];
};

describe("createNamespaces()", () => {
  test("is idempotent, and finishes what a killed daemon began", async () => {
    const dir = join(root, "namespaces");
    mkdirSync(dir);
    // The daemon was killed after it had made the file and before it mounted the namespace.
    writeFileSync(join(dir, "net"), "");
    const first = await network().createNamespaces(dir, ["net", "uts"], "a");
    const net = linux.statfs(first.net!).type;
    const again = await network().createNamespaces(dir, ["net", "ipc", "uts"], "b");
    expect(again).toEqual({ ...first, ipc: join(dir, "ipc") });
    expect(net).toBe(0x6e736673);
    expect(isPinned(again.ipc!, linux)).toBe(true);
    const hostname = execFileSync("nsenter", [`--uts=${first.uts}`, "hostname"], { encoding: "utf8" });
    expect(hostname.trim()).toBe("a");
    await network().removeNamespaces(dir);
    await network().removeNamespaces(dir);
    expect(existsSync(dir)).toBe(false);
    expect(readFileSync("/proc/self/mountinfo", "utf8")).not.toContain(dir);
  });
});

describe("detachFormer()", () => {
  test("gives back after a reboot what pods had before it, also when a plugin fails at first", async () => {
    plugin(
      "picky",
      '[ "$CNI_COMMAND" != DEL ] || [ ! -e "$0.broken" ] || exit 1\n[ "$CNI_COMMAND" = DEL ] || cat | sed "s/.*prevResult.://; s/}$//"',
    );
    configure([bridge(), { ...portmap }, { type: "picky" }]);
    const portMappings = [{ protocol: "tcp" as const, containerPort: 80, hostPort: 18378, hostIp: "" }];
    const [gone, stays] = [await makePod({ portMappings }), await makePod()];
    for (const pod of [gone, stays]) await network().attach(pod, never);
    const taken = ipam();
    expect(taken).toHaveLength(4);
    // All of the pod that ends with a boot.
    await network().removeNamespaces(join(gone.dir, "ns"));
    rmSync(gone.dir, { recursive: true });
    writeFileSync(join(root, "attachments", "torn.json"), "");
    writeFileSync(
      join(root, "attachments", `${stays.id}.json.new`),
      readFileSync(join(root, "attachments", `${stays.id}.json`)),
    );
    const known = new Set([stays.id]);
    writeFileSync(join(binDir, "picky.broken"), "");
    expect(await network().detachFormer(known, never)).toBe(1);
    rmSync(join(binDir, "picky.broken"));
    expect(await network().detachFormer(known, never)).toBe(0);
    expect(ipam()).toHaveLength(2);
    expect(rules()).not.toContain("18378");
    forgetMasquerade(gone.id);
    expect(readdirSync(join(root, "attachments"))).toEqual([`${stays.id}.json`]);
    await network().detach(stays, undefined, never);
    expect(ipam()).toEqual([]);
    expect(readdirSync(join(root, "attachments"))).toEqual([]);
  });
});

describe("attach() and detach()", () => {
  test("a pod gets its addresses, its host port is mapped, and nothing is left of either", async () => {
    configure([bridge(), portmap]);
    const portMappings = [{ protocol: "tcp" as const, containerPort: 80, hostPort: 18377, hostIp: "" }];
    const pod = await makePod({ portMappings });
    const result = await network().attach(pod, never);
    expect(result.ips).toEqual([
      expect.stringMatching(/^10\.213\.77\./),
      expect.stringMatching(/^fd00:213:77::/),
    ]);
    expect(inside(pod, "ip", "-br", "addr", "show", "eth0")).toContain(result.ips[0]);
    expect(inside(pod, "ip", "link", "show", "lo")).toContain("LOOPBACK,UP");
    expect(rules()).toMatch(/dport 18377 .*-j DNAT|--dport 18377/);
    expect(ipam()).toHaveLength(2);

    await network().detach(pod, result, never);
    expect(rules()).not.toContain("18377");
    expect(rules()).not.toContain(pod.id);
    expect(ipam()).toEqual([]);
    await network().detach(pod, result, never);
  });

  test("detach() undoes the masquerade of a pod whose interface has lost its addresses", async () => {
    configure([bridge()]);
    const pod = await makePod();
    const result = await network().attach(pod, never);
    expect(rules().match(new RegExp(`POSTROUTING.*${pod.id}`, "g"))).toHaveLength(2);
    inside(pod, "ip", "addr", "flush", "dev", "eth0");
    await network().detach(pod, result, never);
    expect(rules()).not.toContain(pod.id);
    await network().detach(pod, result, never);
  });

  test("detach() undoes the masquerade after a DEL that was cut short, whether ADD told its result or not", async () => {
    // A bridge plugin that dies at the first DEL, when the interface is gone and the rules are not.
    const [killed, half] = [join(root, "killed"), join(root, "half")];
    plugin(
      "cut-short",
      `if [ "$CNI_COMMAND" = DEL ] && [ ! -e ${killed} ]; then touch ${killed}
      nsenter --net=$CNI_NETNS ip link del eth0; kill -9 $$; fi
      out=$(${join(plugins, "bridge")}) || { echo "$out"; exit 1; }
      if [ "$CNI_COMMAND" = ADD ] && [ -e ${half} ]; then kill -9 $$; fi
      echo "$out"`,
    );
    configure([{ ...bridge(), type: "cut-short" }]);
    for (const addIsCut of [false, true]) {
      rmSync(killed, { force: true });
      if (addIsCut) writeFileSync(half, "");
      const pod = await makePod();
      const attached = network().attach(pod, never);
      const result = addIsCut ? undefined : await attached;
      if (addIsCut) await expect(attached).rejects.toThrow(/SIGKILL/);
      expect(rules().match(new RegExp(`POSTROUTING.*${pod.id}`, "g"))).toHaveLength(2);
      await expect(network().detach(pod, result, never)).rejects.toThrow(/SIGKILL/);
      expect(rules()).toContain(pod.id);
      await network().detach(pod, result, never);
      expect(rules()).not.toContain(pod.id);
    }
    expect(ipam()).toEqual([]);
  });

  test("a DEL that fails after an ADD that failed is left, with the namespace, and nothing is lost by it", async () => {
    const broken = join(root, "broken");
    plugin("half", `[ ! -e ${broken} ] || exit 1; [ "$CNI_COMMAND" = DEL ] || exit 1; exit 0`);
    // bridge's own DEL fails as well: what it made is all there.
    plugin(
      "all",
      `[ "$CNI_COMMAND" != DEL ] || [ ! -e ${broken} ] || exit 1; exec ${join(plugins, "bridge")}`,
    );
    configure([{ ...bridge(), type: "all" }, { type: "half" }]);
    writeFileSync(broken, "");
    const pod = await makePod();
    await expect(network().attach(pod, never)).rejects.toThrow(/"half"/);
    await expect(network().detach(pod, undefined, never)).rejects.toThrow(/"half"/);
    let left: unknown;
    await network().detach(pod, undefined, never, (error) => {
      left = error;
    });
    expect(left).toMatchObject({ message: expect.stringMatching(/"half"/) });
    // The pod goes.
    await network().removeNamespaces(join(pod.dir, "ns"));
    rmSync(pod.dir, { recursive: true });
    expect(await network().detachFormer(new Set(), never)).toBe(1);
    expect(ipam()).toHaveLength(2);
    expect(rules()).toContain(pod.id);
    rmSync(broken);
    expect(await network().detachFormer(new Set(), never)).toBe(0);
    expect(ipam()).toEqual([]);
    expect(rules()).not.toContain(pod.id);
    expect(readdirSync(join(root, "attachments"))).toEqual([]);
    expect(existsSync(join(root, "left"))).toBe(false);
  });

  test("detach() ends the ADD of a daemon that was killed meanwhile", async () => {
    const pidFile = join(root, "orphan");
    plugin("slow", `[ "$CNI_COMMAND" = ADD ] || exit 0; echo $$ > ${pidFile}; sleep 100`);
    configure([{ type: "slow" }]);
    const pod = await makePod();
    const stop = new AbortController();
    const attached = network().attach(pod, stop.signal);
    attached.catch(() => {});
    while (!existsSync(pidFile) || readFileSync(pidFile, "utf8") === "") await sleep(10);
    // As another daemon, which never heard of that call.
    await network().detach(pod, undefined, never);
    await expect(attached).rejects.toThrow(/SIGKILL/);
    stop.abort();
  });

  test("detach() after the namespace is gone gives the address back", async () => {
    // The bridge plugin cannot find its masquerade rule without the namespace, whoever calls it.
    configure([{ ...bridge(), ipMasq: false }, portmap]);
    const pod = await makePod();
    await network().attach(pod, never);
    expect(ipam()).toHaveLength(2);
    await network().removeNamespaces(join(pod.dir, "ns"));
    // Another daemon: it has only what is on disk, and the configuration has changed since.
    configure([{ type: "no-such-plugin" }]);
    await network().detach(pod, undefined, never);
    expect(ipam()).toEqual([]);
  });

  test("detach() of a pod that an earlier version attached gives the address back", async () => {
    configure([bridge()]);
    const pod = await makePod();
    await network().attach(pod, never);
    const noted = join(root, "attachments", `${pod.id}.json`);
    // It had the same in the pod's directory, and at first only there.
    const { config, raw } = JSON.parse(readFileSync(noted, "utf8")) as { config: unknown; raw: unknown };
    writeFileSync(join(pod.dir, "cni.json"), JSON.stringify({ config, raw }));
    rmSync(noted);
    await network().detach(pod, undefined, never);
    expect(ipam()).toEqual([]);
    expect(rules()).not.toContain(pod.id);
    expect(readdirSync(pod.dir)).toEqual(["ns"]);
  });

  test("what a pod is attached to is written down once", async () => {
    configure([bridge()]);
    const pod = await makePod();
    const result = await network().attach(pod, never);
    expect(readdirSync(pod.dir)).toEqual(["ns"]);
    expect(readdirSync(join(root, "attachments"))).toContain(`${pod.id}.json`);
    await network().detach(pod, result, never);
    expect(ipam()).toEqual([]);
  });

  test("an ADD that failed half-way is undone with the configuration it had", async () => {
    plugin(
      "refuse",
      `[ "$CNI_COMMAND" = ADD ] || exit 0; echo '{"cniVersion":"1.0.0","code":11,"msg":"not today","details":"try tomorrow"}'; exit 1`,
    );
    configure([bridge(), { type: "refuse" }]);
    const pod = await makePod();
    await expect(network().attach(pod, never)).rejects.toThrow(
      `Cannot run CNI plugin "refuse" (ADD, network "${NETWORK}"): not today: try tomorrow (exit 1)`,
    );
    expect(ipam()).toHaveLength(2);
    await network().detach(pod, undefined, never);
    expect(ipam()).toEqual([]);
  });

  test("plugins run in order at ADD and backwards at DEL, each with the result before it", async () => {
    const log = join(root, "order");
    const record = `stdin=$(cat); echo "$CNI_COMMAND $(basename $0) $CNI_NETNS $stdin" >> ${log}`;
    plugin("one", `${record}; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.9.1/24"}],"n":1}'`);
    plugin("two", `${record}; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.9.2/24"}],"n":2}'`);
    configure([{ type: "one" }, { type: "two" }]);
    const pod = await makePod();
    const result = await network().attach(pod, never);
    expect(result.ips).toEqual(["10.9.9.2"]);
    await network().detach(pod, result, never);
    const lines = readFileSync(log, "utf8").trim().split("\n");
    expect(lines.map((line) => line.split(" ").slice(0, 2).join(" "))).toEqual([
      "ADD one",
      "ADD two",
      "DEL two",
      "DEL one",
    ]);
    const given = lines.map((line) => JSON.parse(line.slice(line.indexOf("{"))).prevResult?.n);
    expect(given).toEqual([undefined, 1, 2, 2]);
  });

  test("detach() of a pod that was never attached runs nothing", async () => {
    configure([{ type: "no-such-plugin" }]);
    await network().detach(await makePod(), undefined, never);
  });

  test("a failing plugin keeps no other from its DEL, and the call can be made again", async () => {
    const marker = join(root, "fixed");
    plugin(
      "stuck",
      `[ "$CNI_COMMAND" = DEL ] && [ ! -e ${marker} ] && exit 3; cat >/dev/null
      echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.9.1/24"}]}'`,
    );
    configure([bridge(), { type: "stuck" }]);
    const pod = await makePod();
    const result = await network().attach(pod, never);
    await expect(network().detach(pod, result, never)).rejects.toThrow(/"stuck".*it said nothing \(exit 3\)/);
    expect(ipam()).toEqual([]);
    writeFileSync(marker, "");
    await network().detach(pod, result, never);
  });
});

describe("a plugin that misbehaves", () => {
  const attach = async (script: string, signal = never) => {
    plugin("bad", `[ "$CNI_COMMAND" = ADD ] || exit 0; ${script}`);
    configure([{ type: "bad" }]);
    return await network().attach(await makePod(), signal);
  };

  test("is killed with its children when time is up", async () => {
    const pidFile = join(root, "child");
    const began = Date.now();
    await expect(
      attach(`sleep 300 & echo $! > ${pidFile}; wait`, AbortSignal.timeout(300)),
    ).rejects.toMatchObject({ code: "deadline-exceeded" });
    expect(Date.now() - began).toBeLessThan(3_000);
    const pid = readFileSync(pidFile, "utf8").trim();
    await sleep(50);
    const state = existsSync(`/proc/${pid}/stat`)
      ? readFileSync(`/proc/${pid}/stat`, "utf8").split(" ")[2]
      : "Z";
    expect(state).toBe("Z");
  });

  test("cannot hold the pod up through a child that keeps its output open", async () => {
    const began = Date.now();
    const result = await attach(
      `setsid sleep 20 & echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.9.1/24"}]}'`,
    );
    expect(result.ips).toEqual(["10.9.9.1"]);
    expect(Date.now() - began).toBeLessThan(5_000);
  });

  test("cannot fill our memory", async () => {
    await expect(attach("yes")).rejects.toThrow(/printed more than/);
  });

  test("that prints no JSON is named", async () => {
    await expect(attach("cat >/dev/null; echo hello")).rejects.toThrow(/result of CNI plugin "bad"/);
  });

  test("that gives no address fails the pod", async () => {
    await expect(attach(`cat >/dev/null; echo '{"cniVersion":"1.0.0"}'`)).rejects.toThrow(/gave no address/);
  });

  test("that writes only to stderr is quoted", async () => {
    await expect(attach("echo out of veths >&2; exit 9")).rejects.toThrow(/out of veths \(exit 9\)/);
  });
});

describe("notReady()", () => {
  test("reads the directory live", async () => {
    const live = network();
    expect(await live.notReady()).toBe(`no CNI configuration in ${confDir}`);
    writeFileSync(join(confDir, "05-broken.conflist"), "{");
    expect(await live.notReady()).toContain("05-broken.conflist");
    configure([bridge(), portmap]);
    expect(await live.notReady()).toBeUndefined();
    configure([{ type: "absent" }]);
    expect(await live.notReady()).toContain('CNI plugin "absent"');
    rmSync(join(confDir, "10-test.conflist"));
    rmSync(join(confDir, "05-broken.conflist"));
    expect(await live.notReady()).toBe(`no CNI configuration in ${confDir}`);
  });

  test("asks plugins of version 1.1 for their STATUS", async () => {
    plugin("moody", `[ "$CNI_COMMAND" = STATUS ] && { echo '{"code":50,"msg":"no addresses"}'; exit 1; }`);
    configure([{ type: "moody" }], "10-test.conflist", { cniVersion: "1.1.0" });
    expect(await network().notReady()).toContain("no addresses");
  });
});

describe("dial()", () => {
  test("reaches a server on [::1] inside the pod, in both directions, half-closed", async () => {
    const pod = await makePod();
    const server = spawn("nsenter", [
      ...[`--net=${pod.netns}`, "socat", "TCP6-LISTEN:8080,bind=[::1],fork", "EXEC:rev"],
    ]);
    try {
      let reply = "";
      for (let tries = 0; reply === "" && tries < 100; tries++) {
        try {
          const socket = await network().dial(pod.netns, 8080, never);
          socket.setEncoding("utf8").end("bulkhead\n");
          reply = (await socket.toArray()).join("");
        } catch {
          await sleep(20);
        }
      }
      expect(reply).toBe("daehklub\n");
    } finally {
      server.kill();
    }
  });

  test("says of both addresses why it could not", async () => {
    const pod = await makePod();
    await expect(network().dial(pod.netns, 81, never)).rejects.toThrow(
      /Cannot connect to port 81 in the pod: ECONNREFUSED.*127\.0\.0\.1:81.*ECONNREFUSED.*::1:81/,
    );
  });
});
