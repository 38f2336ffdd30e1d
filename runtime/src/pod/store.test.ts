import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { HandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { PodSandboxConfigSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { expect, onTestFinished, test } from "vitest";
import { hold, lost, newPod, type Pod, ready, requireReady, stopped, stopping } from "./state.ts";
import { openPods } from "./store.ts";

const pod = (id: string, attempt = 0): Pod =>
  newPod({
    id,
    createdAt: 1_700_000_000_123_456_789n,
    config: create(PodSandboxConfigSchema, { metadata: { name: "a", namespace: "b", uid: "c", attempt } }),
    runtimeHandler: "",
    handler: HandlerConfig.parse({ name: "runc", kind: "oci", binary: "/runc" }),
    hostname: "a",
  });
const directory = () => {
  const dir = mkdtempSync(join(tmpdir(), "bulkhead-pods-"));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
};
const fail = (error: Error) => {
  throw error;
};

test("a pod is the same after a restart, in every state", () => {
  const dir = directory();
  const store = openPods(dir);
  const network = { result: { ips: ["10.0.0.1"], raw: {}, config: {} } };
  const states = [
    pod("creating", 1),
    ready(hold(pod("ready", 2), { namespaces: { net: "/n" }, network })),
    lost(hold(pod("lost", 3), { network: {} }), "why"),
    stopping({ ...pod("stopping", 4), selinuxLevel: "s0:c1,c2" }),
    stopped(hold(pod("stopped", 5), { sandbox: { state: { pid: 1 } }, network: {} })),
  ];
  for (const each of states) store.add(each);
  const again = openPods(dir);
  again.load(fail);
  for (const each of states) expect(again.get(each.id)).toEqual(each);
  expect(again.get("stopped")?.held).toEqual({ sandbox: { state: { pid: 1 } } });
});

test("a name is reserved for as long as the pod is there, also over a restart", () => {
  const dir = directory();
  const store = openPods(dir);
  store.add(pod("one"));
  expect(() => store.add(pod("two"))).toThrow("the name is reserved for one");
  const again = openPods(dir);
  again.load(fail);
  expect(() => again.add(pod("two"))).toThrow("the name is reserved for one");
  again.delete("one");
  again.add(pod("two"));
});

test("what a kill -9 left half-written is removed, the record before it stays", () => {
  const dir = directory();
  const store = openPods(dir);
  store.add(pod("one"));
  writeFileSync(join(dir, "one.json.new"), '{"version":1,"id":"on');
  const again = openPods(dir);
  again.load(fail);
  expect(again.require("one").state).toBe("creating");
  expect(readdirSync(dir)).toEqual(["one.json"]);
});

test("a record that cannot be read is reported and does not hide the others", () => {
  const dir = directory();
  openPods(dir).add(pod("one"));
  writeFileSync(join(dir, "two.json"), '{"version":2}');
  const errors: string[] = [];
  const again = openPods(dir);
  again.load((error) => errors.push(error.message));
  expect(again.list().map(({ id }) => id)).toEqual(["one"]);
  expect(errors.join()).toContain("two.json");
});

test("what has happened is taken in although it cannot be written, and is written as soon as it can be", async () => {
  const dir = directory();
  const store = openPods(dir);
  store.add(pod("one"));
  rmSync(dir, { recursive: true });
  expect(() => store.update("one", ready)).toThrow("ENOENT");
  expect(store.require("one").state).toBe("creating");
  store.learn("one", (each) => lost(each, "its holder died"));
  expect(store.require("one").state).toBe("lost");
  mkdirSync(dir);
  const read = () => {
    const again = openPods(dir);
    again.load(fail);
    return again.get("one")?.state;
  };
  await expect.poll(read, { timeout: 25_000 }).toBe("lost");
});

test("records are for nobody else to read (CVE-2024-25621)", () => {
  const dir = join(directory(), "records");
  openPods(dir).add(pod("one"));
  expect(statSync(dir).mode & 0o777).toBe(0o700);
  expect(statSync(join(dir, "one.json")).mode & 0o777).toBe(0o600);
});

test("ids are found by a prefix that only one has", () => {
  const store = openPods(directory());
  store.add(pod("abc1", 1));
  store.add(pod("abd2", 2));
  expect(store.find("abc")?.id).toBe("abc1");
  expect(store.find("x")).toBeUndefined();
  expect(() => store.find("ab")).toThrow("2 ids begin with it");
});

test("only a ready pod takes containers", () => {
  expect(() => requireReady(pod("p"), "create a container")).toThrow("it is creating");
  expect(() => requireReady(lost(pod("p"), "its holder died"), "create a container")).toThrow(
    "its holder died",
  );
  requireReady(ready(pod("p")), "create a container");
});

test("a pod that is going does not become ready or lost", () => {
  expect(() => ready(stopping(pod("p")))).toThrow("cannot become ready: it is stopping");
  expect(lost(stopping(pod("p")), "x").state).toBe("stopping");
  expect(stopping(stopped(pod("p"))).state).toBe("stopped");
});
