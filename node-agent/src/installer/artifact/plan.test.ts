import { describe, expect, test } from "vitest";
import { type Found, needsRepair, nextOf, unused, wantedBy } from "./plan.ts";

const hex = "ab".repeat(32);
const image = `registry.example/gvisor@sha256:${hex}`;
const signed = (publicKeys: string[], identity: "repository" | "any" = "repository") =>
  wantedBy({ artifact: { image, verify: { cosign: { publicKeys, identity } } } });
const found = (record: Partial<Found["record"]> = {}, changed: string[] = []): Found => ({
  record: { image, list: "sha256:1", policies: [], repair: false, ...record },
  changed,
});

describe("what a profile wants", () => {
  test("of the bundle is no artifact; of an image the digest names all", () => {
    expect(wantedBy({ artifact: { bundled: true } })).toBeUndefined();
    expect(wantedBy({ artifact: { image } })).toMatchObject({ hex, image, policy: undefined, repair: false });
  });

  test("is another policy with other keys or another identity, whatever the keys' order", () => {
    expect(signed(["a", "b"])?.policy).toBe(signed(["b", "a"])?.policy);
    expect(signed(["a"])?.policy).not.toBe(signed(["b"])?.policy);
    expect(signed(["a"])?.policy).not.toBe(signed(["a"], "any")?.policy);
  });
});

describe("an artifact", () => {
  const want = signed(["a"]);
  if (want?.policy === undefined) throw new Error("no policy");

  test("that is not there, or was left on its way, is fetched", () => {
    expect(nextOf(undefined, want)).toBe("fetch");
    expect(nextOf(found({ list: null, policies: [want.policy ?? ""] }), want)).toBe("fetch");
  });

  test("that is there is verified by a policy that it was not yet held to, and then left alone", () => {
    expect(nextOf(found(), want)).toBe("verify");
    expect(nextOf(found({ policies: [want.policy ?? ""] }), want)).toBe("nothing");
    expect(nextOf(found(), { ...want, policy: undefined })).toBe("nothing");
  });

  test("that was changed is fetched anew only where its profile says so", () => {
    expect(needsRepair(found({ repair: true }, ["bin/runsc"]))).toBe(true);
    expect(needsRepair(found({ repair: true }))).toBe(false);
    expect(needsRepair(found({}, ["bin/runsc"]))).toBe(false);
    expect(needsRepair(found({ repair: true, list: null }, ["bin/runsc"]))).toBe(false);
  });

  test("goes when no profile, file, process or pod knows of it", () => {
    const [a, b, c, d] = ["a", "b", "c", "d"].map((digit) => digit.repeat(64)) as [
      string,
      string,
      string,
      string,
    ];
    const text = `binary: /opt/bulkhead/artifacts/${b}/root/bin/runsc`;
    expect(unused([a, b, c, d], new Set([a]), text, new Set([c]))).toEqual([d]);
  });
});
