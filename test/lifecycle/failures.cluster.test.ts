import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { profileReady } from "../cluster/bulkhead.ts";
import { podOf } from "../pods/kube.ts";
import type { Lives } from "../pods/lives.ts";
import {
  type Condition,
  eventually,
  type Life,
  type NodeProfile,
  openLife,
  profileOf,
  walls,
} from "./life.ts";

/** A profile that cannot work harms nobody, and says why (issue 3, "What must hold", 3 and 4). */

let life: Life;
let since: Condition | undefined;
let running: Lives;

beforeAll(async () => {
  life = await openLife("failures");
  await life.install();
  for (const wall of walls) await life.ns.run(life.counter(wall, wall));
  await life.ns.run(life.counter("engine"));
  since = await life.nodeReady();
  running = await life.lives();
});
afterAll(async () => {
  await life?.[Symbol.asyncDispose]();
});

/** The profile is Degraded with that reason: on the node and in the profile. */
const degraded = async (profile: string, reason: RegExp, message: RegExp): Promise<NodeProfile> =>
  eventually(async () => {
    const found = await life.nodeProfile(profile);
    expect(found?.reason).toMatch(reason);
    expect(found?.message).toMatch(message);
    const condition = await life.condition(profile, "Degraded");
    expect(condition?.status).toBe("True");
    expect(condition?.message).toMatch(message);
    return found as NodeProfile;
  }, 90);
const remove = (profile: string) => life.cluster.kubectl(["delete", "rtp", profile, "--timeout=60s"]);
const runsc = async (): Promise<string> =>
  `${(await life.node.exec(["readlink", "-f", "/opt/bulkhead/current"])).trim()}/bin/runsc`;

describe("A profile that cannot work", () => {
  test("by a flag that gVisor does not know ends Degraded by that flag's name, and heals when it is corrected", async () => {
    await life.apply(profileOf("flagged", { gvisor: { flags: ["--no-such-flag"] } }));
    const found = await degraded("flagged", /^InstallFailed$/, /not defined: -no-such-flag/);
    expect(found).toMatchObject({ phase: "Failed", revision: "" });
    // Nothing of it is left behind on the node.
    expect(await life.node.exec(["find", "/etc/bulkhead", "-name", "flagged*"])).toBe("");
    for (const wall of walls) await life.tryPod(`beside-${wall}`, wall);
    await life.apply(profileOf("flagged", { gvisor: {} }));
    await profileReady(life.cluster, "flagged", undefined, 60);
    expect((await life.condition("flagged", "Degraded"))?.status).toBe("False");
    await life.tryPod("flagged", "flagged");
  });

  test("any more goes back to the revision that did, and says so", async () => {
    const { revision } = (await life.nodeProfile("flagged")) as NodeProfile;
    await life.apply(profileOf("flagged", { gvisor: { flags: ["--no-such-flag"] } }));
    const found = await degraded("flagged", /^InstallFailed$/, /not defined: -no-such-flag/);
    expect(found).toMatchObject({ phase: "RolledBack", revision });
    await life.tryPod("rolled-back", "flagged");
    // A flag that gVisor knows and that only a pod brings to light.
    await life.apply(profileOf("flagged", { gvisor: { flags: ["--pod-init-config=/no/such/file"] } }));
    await degraded("flagged", /^CanaryFailed$/, /./);
    await life.tryPod("rolled-back-again", "flagged");
    await remove("flagged");
  });

  test("by a flag that runc does not know ends Degraded by that flag's name", async () => {
    await life.apply(profileOf("flagged-runc", { runc: { flags: ["--no-such-flag"] } }));
    await degraded("flagged-runc", /^InstallFailed$/, /not defined: -no-such-flag/);
    await remove("flagged-runc");
  });

  test("because it asks for a platform that does not work here ends Degraded with what was tried", async () => {
    await life.apply(profileOf("on-kvm", { gvisor: { platform: "kvm" } }));
    await degraded(
      "on-kvm",
      /^InstallFailed$/,
      /Cannot run gVisor's platform "kvm" on this node: KVM boots no guest here: ./,
    );
    const { status } = await life.get<{ status: { gvisorPlatforms: { name: string; works: boolean }[] } }>(
      "nrt",
      life.node.name,
    );
    expect(status.gvisorPlatforms).toMatchObject([
      { name: "systrap", works: true },
      { name: "kvm", works: false, message: expect.stringContaining("KVM boots no guest here: ") },
      { name: "ptrace", works: true },
    ]);
    await remove("on-kvm");
  });

  test.each([["kata", { kata: {} }, /Kata is not installed at/]])(
    "because the bundle has no %s ends Degraded and says so",
    async (name, handler, message) => {
      await life.apply(profileOf(`missing-${name}`, handler));
      await degraded(`missing-${name}`, /^NotSupported$/, message);
      await remove(`missing-${name}`);
    },
  );

  test("for want of huge pages leaves its pods to wait for them, in the scheduler's words", async () => {
    const kata = { shim: "go", hugepages: true, memory: "32Gi" };
    await life.apply(profileOf("huge", { kata }, { runtimeClass: { readiness: "none" } }));
    await eventually(async () => void (await life.get("runtimeclass", "huge")));
    await life.ns.apply(podOf("paged", "huge", life.image));
    await eventually(async () => {
      const jsonpath = 'jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}';
      expect(await life.ns.kubectl(["get", "pod", "paged", "-o", jsonpath])).toContain(
        "Insufficient hugepages-2Mi",
      );
    });
    await life.ns.kubectl(["delete", "pod", "paged", "--grace-period=0", "--force"]);
    await remove("huge");
  });

  test("by a broken runsc that cannot be replaced ends Degraded, and heals when it can", async () => {
    const path = await runsc();
    const quick = { probe: { interval: "5s" } };
    await life.apply(profileOf("broken", { gvisor: {} }, quick));
    await profileReady(life.cluster, "broken", undefined, 60);
    // A mount point cannot be renamed over: what drifts otherwise is put back before anybody sees it.
    await life.node.exec(["mount", "--bind", "/bin/false", path]);
    try {
      const found = await degraded("broken", /^(CanaryFailed|InstallFailed)$/, /runsc/);
      expect(found.phase).toBe("Failed");
      expect((await life.nodeProfile("standard"))?.phase).toBe("Ready");
      await life.tryPod("beside-broken", "standard");
    } finally {
      await life.node.exec(["umount", path]);
    }
    for (const profile of ["broken", "sandboxed"]) await profileReady(life.cluster, profile, undefined, 120);
    await life.tryPod("healed", "broken");
    await remove("broken");
  });

  test.each([
    // Running sandboxes hold the old inode: it cannot be written to, but another can take its place.
    [
      "written over",
      (path: string) => `echo broken > ${path}.x && chmod 755 ${path}.x && mv ${path}.x ${path}`,
    ],
    ["removed", (path: string) => `rm ${path}`],
  ])("because runsc was %s is mended by itself, and an Event says so", async (_how, harm) => {
    const path = await runsc();
    const digest = await life.node.exec(["sha256sum", path]);
    const drifts = async () =>
      (
        await life.get<{ items: { reason: string; note: string; series?: { count: number } }[] }>(
          "events.events.k8s.io",
          "-A",
        )
      ).items
        .filter(({ reason }) => reason === "Drifted" || reason === "Staged")
        .reduce((sum, { series }) => sum + (series?.count ?? 1), 0);
    const before = await drifts();
    await life.node.exec(["sh", "-c", harm(path)]);
    await eventually(async () => expect(await life.node.exec(["sha256sum", path])).toBe(digest), 60);
    await eventually(async () => expect(await drifts()).toBeGreaterThan(before));
    await profileReady(life.cluster, "sandboxed", undefined, 60);
  });

  test("takes neither the runtime from the kubelet nor a container from anybody", async () => {
    expect(await life.nodeReady()).toMatchObject({
      status: "True",
      lastTransitionTime: since?.lastTransitionTime,
    });
    expect(await life.lives()).toEqual(running);
  });
});

describe("An invalid profile is refused with its field's name:", () => {
  test.each([
    ["no handler", {}, "spec.handler"],
    ["two handlers", { runc: {}, gvisor: {} }, "spec.handler"],
    ["a flag with a shell's meaning", { runc: { flags: ["--a=$(id)"] } }, "spec.handler.runc.flags"],
    ["an unknown platform", { gvisor: { platform: "magic" } }, "spec.handler.gvisor.platform"],
    ["a flag that unsays a field", { gvisor: { flags: ["--network=host"] } }, "flags cannot set platform"],
    ["a flag that no pod may set", { gvisor: { tenant: { flags: ["network"] } } }, "gvisor.tenant.flags"],
  ])("%s", async (_title, handler, field) => {
    await expect(life.apply(profileOf("refused", handler))).rejects.toThrow(field);
  });
});
