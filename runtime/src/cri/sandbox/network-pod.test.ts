import { create } from "@bufbuild/protobuf";
import { PodSandboxConfigSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { expect, test } from "vitest";
import type { Pod } from "../../pod/state.ts";
import { networkPod, requireNetworkPod } from "./network-pod.ts";

const configWith = (ingress: string) =>
  create(PodSandboxConfigSchema, { annotations: { "kubernetes.io/ingress-bandwidth": ingress } });
const bandwidthOf = (ingress: string) =>
  networkPod({ stateDir: "/s" }, { id: "p", config: configWith(ingress), held: {} } as unknown as Pod)
    .bandwidth;

test.each([
  ["1000", 1000],
  ["10M", 10_000_000],
  ["1.5M", 1_500_000],
  ["64Ki", 65_536],
  ["2e6", 2_000_000],
  ["1500500m", 1501],
  ["1P", 1e15],
])("a bandwidth of %s is %i bits per second", (text, ingress) => {
  requireNetworkPod(configWith(text));
  expect(bandwidthOf(text)).toEqual({ ingress });
});

test.each(["", "fast", "10MB", "-10M", "999", "2P", "1e99", "1".repeat(100)])(
  "a bandwidth of %j is refused by the annotation's name",
  (text) => {
    expect(() => requireNetworkPod(configWith(text))).toThrow(
      /annotation kubernetes.io\/ingress-bandwidth: ".*1k to 1P/,
    );
    // A pod that is there already can be taken down.
    expect(bandwidthOf(text)).toBeUndefined();
  },
);

test.each(["name", "namespace", "uid"])("a %s that CNI_ARGS cannot hold is refused", (field) => {
  for (const value of ["a;b", "a=b", "a\0b"])
    expect(() => requireNetworkPod(create(PodSandboxConfigSchema, { metadata: { [field]: value } }))).toThrow(
      new RegExp(`its ${field} ".*" has`),
    );
});
