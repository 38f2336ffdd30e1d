import { describe, expect, test } from "vitest";
import { hasRoom } from "../../probe/static-pod.ts";
import { staleStaticPods, staticPodSettings, troubleIn } from "./static-pods.ts";

const file = (path: string, body: string) => ({ path, body });
const view = (argv: string[], config = "", dropins: string[] = []) => ({
  argv: ["/usr/bin/kubelet", ...argv],
  flagFiles: [],
  config: file("/etc/k.yaml", config),
  dropins: {
    directory: "/etc/k.d",
    files: dropins.map((body, at) => file(`/etc/k.d/${at}.conf`, body)),
  },
});
const cluster = "--kubeconfig=/etc/kubernetes/kubelet.conf";

describe("Where a kubelet takes static pods from", () => {
  test.each([
    [
      "its file",
      view([cluster], "staticPodPath: /etc/kubernetes/manifests\n"),
      "/etc/kubernetes/manifests",
      110,
    ],
    [
      "a flag, which wins",
      view([cluster, "--pod-manifest-path", "/flag"], "staticPodPath: /a\n"),
      "/flag",
      110,
    ],
    [
      "the last drop-in that says so",
      view([cluster], "staticPodPath: /a\nmaxPods: 30\n", ["staticPodPath: /b\n", "maxPods: 250\n"]),
      "/b",
      250,
    ],
    ["a flag's pods", view([cluster, "--max-pods=20"], "staticPodPath: /a\nmaxPods: 30\n"), "/a", 20],
    ["no pods at all", view([cluster], "staticPodPath: /a\nmaxPods: 0\n"), "/a", 110],
  ])("%s", (_, given, directory, maxPods) => {
    expect(staticPodSettings(given, "process")).toEqual({ directory, maxPods });
  });

  test.each([
    ["without a directory", view([cluster], "maxPods: 30\n")],
    ["without an API server, which has the RuntimeClass", view([], "staticPodPath: /a\n")],
    ["with a path that is relative to its file", view([cluster], "staticPodPath: manifests\n")],
  ])("%s: nowhere", (_, given) => {
    expect(staticPodSettings(given, "process")).toBeUndefined();
  });

  test("inside a distribution's process there is an API server", () => {
    expect(staticPodSettings(view([], "staticPodPath: /a\n"), "k3s")).toMatchObject({ directory: "/a" });
  });
});

test("only a node with a tenth of its pods to spare has room: a kubelet ends others for a static pod", () => {
  expect([hasRoom(98, 110), hasRoom(99, 110), hasRoom(110, 110), hasRoom(0, 1)]).toEqual([
    true,
    false,
    false,
    false,
  ]);
});

test("why a pod does not run is the last thing that the kubelet said of it, once it said so twice", () => {
  const line = (err: string, uid: string) =>
    `E1129 02:00:00.1 7 pod_workers.go:1324] "Error syncing pod, skipping" err="${err}" pod="bulkhead-canary/c" podUID="${uid}"`;
  const waits = line("network is not ready: container runtime network not ready", "u1");
  expect(troubleIn([waits, waits, line("first", "u1")].join("\n"), "u1")).toBeUndefined();
  const log = [
    line("first", "u1"),
    line('failed to \\"CreatePodSandbox\\": no such hypervisor', "u1"),
    line("another's", "u2"),
    'E1129 kubelet.go:1] "Failed creating a mirror pod" err="namespaces not found" podUID="u1"',
  ].join("\n");
  expect(troubleIn(log, "u1")).toBe('failed to "CreatePodSandbox": no such hypervisor');
  expect(troubleIn(log, "u3")).toBeUndefined();
});

test("what an installer that was killed has left is known by its name", () => {
  const of = (path: string) => ({ kind: "file", path, sha256: "", former: null }) as const;
  const own = "/etc/kubernetes/manifests/bulkhead-canary-vm.json";
  expect(staleStaticPods({ entries: [of("/etc/bulkhead/runtime.yaml"), of(own)] })).toEqual([own]);
});
