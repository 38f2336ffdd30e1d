import { create } from "@bufbuild/protobuf";
import { ContainerConfigSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { expect, test } from "vitest";
import { created, exited, newContainer, started, startFailed, stateLost } from "./state.ts";
import { containerCodec } from "./store.ts";

const fresh = () =>
  newContainer({
    id: "c",
    podId: "p",
    createdAt: 1n,
    config: create(ContainerConfigSchema, {
      metadata: { name: "c" },
      envs: [{ key: "A", value: new Uint8Array([255]) }],
    }),
    imageId: "sha256:1",
    logPath: "/l",
    stopSignal: 15,
  });
const made = {
  handlerState: { pid: 7 },
  user: { uid: 0, gid: 0, groups: [0] },
  process: { user: { uid: 0, gid: 0 }, args: ["x"], env: [], cwd: "/" },
  imageMounts: [],
  resources: {},
};
const waiting = () => created(fresh(), made);
const exit = (code: number, oomKilled = false) => ({ code, finishedAt: 9n, oomKilled });

test.each([
  [0, false, "Completed"],
  [3, false, "Error"],
  [137, false, "Error"],
  [137, true, "OOMKilled"],
])("exit code %i, out of memory %s: reason %s", (code, oomKilled, reason) => {
  expect(exited(started(waiting(), 5n), exit(code, oomKilled))).toMatchObject({
    state: "exited",
    reason,
    startedAt: 5n,
    finishedAt: 9n,
  });
});

test("an exit that overtakes the answer to start keeps its code and gets its start time", () => {
  expect(started(exited(waiting(), exit(0)), 5n)).toMatchObject({
    state: "exited",
    exitCode: 0,
    startedAt: 5n,
  });
});

test("nothing begins after its end", () => {
  expect(started(exited(waiting(), exit(0)), 12n)).toMatchObject({ startedAt: 9n, finishedAt: 9n });
  expect(exited(started(waiting(), 12n), exit(0))).toMatchObject({ startedAt: 9n, finishedAt: 9n });
});

test("the first exit counts", () => {
  const once = exited(started(waiting(), 5n), exit(3));
  expect(exited(once, exit(0))).toBe(once);
  expect(stateLost(once, 10n, "")).toBe(once);
});

test("a failed start is 128 StartError, a lost state 255 Unknown", () => {
  expect(startFailed(waiting(), 9n, "no such file")).toMatchObject({
    exitCode: 128,
    reason: "StartError",
    message: "no such file",
    startedAt: 0n,
  });
  expect(stateLost(started(waiting(), 5n), 9n, "")).toMatchObject({ exitCode: 255, reason: "Unknown" });
});

test("a container that is being created is neither started nor exited", () => {
  expect(() => started(fresh(), 1n)).toThrow("cannot be started: it is creating");
  expect(exited(fresh(), exit(0)).state).toBe("creating");
});

test("a container is the same after a restart, in every state", () => {
  for (const each of [fresh(), waiting(), started(waiting(), 5n), exited(started(waiting(), 5n), exit(3))])
    expect(containerCodec.decode(JSON.parse(JSON.stringify(containerCodec.encode(each))))).toEqual(each);
});
