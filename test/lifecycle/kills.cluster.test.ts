import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { namespace, profileReady } from "../cluster/bulkhead.ts";
import { podOf } from "../pods/kube.ts";
import { eventually, killProgram, type Life, type NodeProfile, openLife, profileOf, walls } from "./life.ts";

/** Whatever is killed, nothing is lost and all becomes well by itself (issue 3, "What must hold", 2). */

let life: Life;
const pods = ["engine", ...walls];

beforeAll(async () => {
  life = await openLife("kills");
  await life.install();
  for (const wall of walls) await life.ns.run(life.counter(wall, wall));
  await life.ns.run(life.counter("engine"));
});
afterAll(async () => {
  await life?.[Symbol.asyncDispose]();
});

const allWell = async (): Promise<void> => {
  await eventually(async () => {
    expect((await life.nodeReady())?.status).toBe("True");
    for (const wall of walls) {
      expect((await life.condition(wall, "Ready"))?.status).toBe("True");
      expect((await life.nodeProfile(wall))?.phase).toBe("Ready");
    }
  });
  await Promise.all(pods.map(life.counts));
};

describe("No container stops and no line is lost", () => {
  const killed = async (program: Parameters<typeof killProgram>[1]): Promise<void> =>
    expect(await killProgram(life.cluster, program)).toContain("killed");
  const restart = (unit: string) => life.node.exec(["systemctl", "restart", unit]);
  const blows: [string, () => Promise<unknown>][] = [
    ["kill -9 of the runtime", () => life.node.kill("bulkhead-runtime")],
    [
      "kill -9 of the runtime again and again",
      async () => {
        for (let i = 0; i < 5; i++) {
          await life.node.kill("bulkhead-runtime").catch(() => {});
          await sleep(700 + 400 * i);
        }
      },
    ],
    ["kill -9 of the reporter", () => killed("reporter")],
    ["kill -9 of the installer", () => killed("installer")],
    ["kill -9 of the operator", () => killed("operator")],
    ["systemctl restart bulkhead-runtime", () => restart("bulkhead-runtime")],
    ["systemctl restart containerd", () => restart("containerd")],
    ["systemctl restart kubelet", () => restart("kubelet")],
  ];
  test.each(blows)("by %s", async (_blow, strike) => {
    const running = await life.lives();
    for (const pod of pods) expect(running[`${pod}/main`]?.process).toMatch(/^\d+ since \d+$/);
    await strike();
    await allWell();
    expect(await life.lives()).toEqual(running);
  });

  test("when installer, reporter, operator and runtime are killed in the midst of an installation", async () => {
    const running = await life.lives();
    await life.apply(profileOf("extra", { gvisor: { platform: "systrap", network: "none" } }));
    for (const program of ["installer", "operator", "reporter", "installer"] as const) {
      await sleep(400);
      await killProgram(life.cluster, program);
    }
    await life.node.kill("bulkhead-runtime");
    await profileReady(life.cluster, "extra", undefined, 120);
    await life.cluster.kubectl(["delete", "rtp", "extra", "--timeout=60s"]);
    expect(await life.lives()).toEqual(running);
    await allWell();
  });
});

test("After a boot a profile serves nobody on the word of the boot before: a canary proves it first", async () => {
  const running = await life.lives();
  const record = "/opt/bulkhead/installed.json";
  const verifying = ["--for=jsonpath={.status.profiles[0].phase}=Verifying", "--timeout=60s", "-o", "json"];
  const seen = life.cluster.kubectl(["wait", "nrt", life.node.name, ...verifying]);
  // The test's nodes boot without their kernel: the record is made to say that its canaries passed in another boot.
  await life.node.exec(["sed", "-i", 's/"boot": "[^"]*"/"boot": "another"/', record]);
  await killProgram(life.cluster, "installer");
  // A pod of its own: by now the kubelet lets a container that was killed so often wait.
  const agent = ["-l", "app.kubernetes.io/component=node-agent", "--grace-period=1"];
  await life.cluster.kubectl(["-n", namespace, "delete", "pod", ...agent]);
  const [profile] = (JSON.parse(await seen) as { status: { profiles: NodeProfile[] } }).status.profiles;
  expect(profile).toMatchObject({ phase: "Verifying", revision: "" });
  await allWell();
  expect(await life.lives()).toEqual(running);
  const boots = [...(await life.node.readFile(record)).matchAll(/"boot": "([^"]*)"/g)].map(
    ([, boot]) => boot,
  );
  const boot = (await life.node.exec(["cat", "/proc/sys/kernel/random/boot_id"])).trim();
  expect(boots).toEqual(walls.map(() => boot));
});

test("A container that ends while the runtime is dead keeps its exit code, its time and its last line", async () => {
  const name = (wall: string) => `ends-${wall}`;
  for (const wall of walls)
    await life.ns.apply(
      podOf(name(wall), wall, life.image, { command: ["sh", "-c", "sleep 8; echo last; exit 7"] }),
    );
  for (const wall of walls) await life.ns.until(name(wall), ({ status }) => status.phase === "Running");
  await life.node.kill("bulkhead-runtime");
  await life.node.exec(["systemctl", "stop", "bulkhead-runtime"]);
  await sleep(9000);
  const started = Date.now();
  await life.node.exec(["systemctl", "start", "bulkhead-runtime"]);
  for (const wall of walls) {
    const { status } = await life.ns.until(name(wall), ({ status }) => status.phase === "Failed");
    const end = status.containerStatuses?.[0]?.state.terminated;
    expect(end).toMatchObject({ exitCode: 7, reason: "Error" });
    expect(Date.parse(end?.finishedAt ?? "")).toBeLessThan(started);
    expect(await life.ns.kubectl(["logs", name(wall)])).toBe("last\n");
    await life.ns.remove(name(wall));
  }
});

test("An engine that is down takes down its own pods' calls only, with an error that says so", async () => {
  const running = await life.lives();
  const away = /engine at \/run\/containerd\/containerd\.sock does not answer/;
  await life.node.exec(["systemctl", "stop", "containerd"]);
  try {
    await expect(life.ns.exec("engine", "true")).rejects.toThrow(away);
    for (const wall of walls) await life.tryPod(`meanwhile-${wall}`, wall);
    await life.ns.apply(podOf("meanwhile-none", undefined, life.image));
    await eventually(async () => expect(await life.ns.events("meanwhile-none")).toMatch(away), 30);
  } finally {
    await life.node.exec(["systemctl", "start", "containerd"]);
  }
  await life.ns.until("meanwhile-none", ({ status }) => status.phase === "Running");
  await life.ns.remove("meanwhile-none");
  expect(await life.ns.exec("engine", "echo", "back")).toBe("back\n");
  expect(await life.lives()).toEqual(running);
  await allWell();
});
