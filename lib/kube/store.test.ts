import { expect, test } from "vitest";
import { createStore } from "./store.ts";

const object = (name: string, version: number, color = "red", uid = name) => ({
  metadata: { name, uid, resourceVersion: String(version), labels: { color } },
});

test("set() tells what is new, what changed, and nothing of a version that is here already", () => {
  const store = createStore();
  expect(store.set(object("a", 1))).toMatchObject({ type: "added" });
  expect(store.set(object("a", 1))).toBeUndefined();
  expect(store.set(object("a", 2))).toMatchObject({
    type: "updated",
    old: { metadata: { resourceVersion: "1" } },
  });
});

test("replace() reveals deletions that no watch told of", () => {
  const store = createStore();
  store.set(object("stays", 1));
  store.set(object("goes", 1));
  store.set(object("changes", 1));
  const changes = store.replace([object("stays", 1), object("changes", 2), object("comes", 3)]);
  expect(changes.map((change) => `${change.type} ${change.object.metadata.name}`)).toEqual([
    "deleted goes",
    "updated changes",
    "added comes",
  ]);
  expect(store.size).toBe(3);
});

test("An index follows its objects as they come, change and go", () => {
  const store = createStore({ color: (o: ReturnType<typeof object>) => o.metadata.labels.color });
  const names = (color: string) => [...store.indexed("color", color)].map((o) => o.metadata.name);
  store.set(object("a", 1, "red"));
  store.set(object("b", 1, "red"));
  expect(names("red")).toEqual(["a", "b"]);
  store.set(object("a", 2, "blue"));
  expect(names("red")).toEqual(["b"]);
  expect(names("blue")).toEqual(["a"]);
  store.delete("b");
  expect(names("red")).toEqual([]);
});
