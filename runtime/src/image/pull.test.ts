import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import type { LayerUsage, Snapshotter } from "../snapshot/snapshotter.ts";
import { unpackLayers } from "./pull.ts";
import type { Repository } from "./registry.ts";
import type { Layer } from "./resolve.ts";
import { SingleFlight } from "./single-flight.ts";

const layers: Layer[] = ["a", "b", "c"].map((chainId) => ({
  ...{ chainId, digest: `sha256:${chainId}`, diffId: `sha256:${chainId}` },
  ...{ size: 1, mediaType: "application/vnd.oci.image.layer.v1.tar" },
}));

/** A fake snapshotter in memory, as its contract is: a layer is there when what it waits for is. */
const pulling = (present: string[], recorded: Promise<void>, signal = new AbortController().signal) => {
  const stands = [...present];
  const extract: Snapshotter["extract"] = async (id, _parent, _source, _signal, after) => {
    await after;
    stands.push(id);
    return { bytes: 1, inodes: 1 };
  };
  const done = unpackLayers(
    layers,
    {
      repository: {} as Repository,
      snapshotter: { has: (id) => stands.includes(id), extract } as Snapshotter,
      stage: { fetch: async () => ({ path: "/nowhere", [Symbol.asyncDispose]: async () => {} }) },
      flights: new SingleFlight<LayerUsage | undefined>(),
      recorded,
    },
    signal,
  );
  done.catch(() => {});
  return { stands, done };
};

test.each([[[]], [["a"]], [["a", "b"]]])(
  "no layer comes to stand before its record, with %j there already",
  async (present) => {
    const recorded = Promise.withResolvers<void>();
    const { stands, done } = pulling(present, recorded.promise);
    await sleep(20);
    expect(stands).toEqual(present);
    recorded.resolve();
    expect([...(await done).keys()]).toEqual(["a", "b", "c"].filter((id) => !present.includes(id)));
    expect(stands).toEqual(["a", "b", "c"]);
  },
);

test("without its record no layer comes to stand, and the record's failure is the pull's", async () => {
  const { stands, done } = pulling(["a"], Promise.reject(new Error("the disk is full")));
  await expect(done).rejects.toThrow("the disk is full");
  expect(stands).toEqual(["a"]);
});
