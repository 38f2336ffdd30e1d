import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { sha256 } from "./manifest.ts";
import { type ImageRecord, planSweep } from "./record.ts";

const record = (id: string, state: ImageRecord["state"], chain: string[]): ImageRecord => ({
  version: 1,
  state,
  kind: "image",
  id: sha256(id),
  size: 1,
  layers: chain.map((chainId) => ({ chainId, digest: sha256(chainId), bytes: 1, inodes: 1 })),
  blobs: [sha256(id), sha256("shared index")],
  user: { username: "" },
  config: {
    user: "",
    env: [],
    entrypoint: [],
    cmd: [],
    workingDir: "",
    stopSignal: "",
    volumes: [],
    labels: {},
  },
});
const none = { images: new Set<string>(), layers: new Set<string>() };

describe("planSweep()", () => {
  test("takes the layers of what went, from the top, and leaves what others stand on", () => {
    const sweep = planSweep(
      [record("gone", "removed", ["a", "b", "c"]), record("here", "present", ["a"])],
      none,
    );
    expect(sweep.layers).toEqual(["c", "b"]);
    expect(sweep.records.map(({ id }) => id)).toEqual([sha256("gone")]);
    expect(sweep.blobs).toEqual([sha256("gone")]);
  });

  test("leaves what a container or a pull holds", () => {
    const records = [record("used", "removed", ["a", "b"]), record("pulled", "partial", ["a", "c"])];
    expect(planSweep(records, { images: new Set(records.map(({ id }) => id)), layers: new Set() })).toEqual({
      records: [],
      layers: [],
      blobs: [],
    });
    expect(planSweep(records, { ...none, layers: new Set(["a", "c"]) }).layers).toEqual(["b"]);
  });

  test("never takes a layer before one that stands on it", () => {
    // A chain ID is the path from the root of a tree of layers.
    const chains = fc.array(fc.array(fc.constantFrom("x", "y"), { minLength: 1, maxLength: 5 }), {
      maxLength: 6,
    });
    fc.assert(
      fc.property(chains, fc.array(fc.boolean()), (all, present) => {
        const records = all.map((steps, n) =>
          record(
            `${n}`,
            present[n] ? "present" : "removed",
            steps.map((_, depth) => steps.slice(0, depth + 1).join("")),
          ),
        );
        const { layers } = planSweep(records, none);
        layers.forEach((layer, n) => {
          expect(layers.slice(n + 1).filter((later) => later.startsWith(layer))).toEqual([]);
        });
        for (const kept of records.filter(({ state }) => state === "present")) {
          for (const { chainId } of kept.layers) expect(layers).not.toContain(chainId);
        }
      }),
    );
  });
});
