import { describe, expect, test } from "vitest";
import { passedAnnotations, requireAllowed } from "./annotations.ts";

const gvisor = { name: "sandboxed", allowedAnnotations: ["dev.gvisor.flag.debug"], runsc: {} };

test("a pod passes what its handler lets through, and never what names files of the node or says who is who", () => {
  const pod = {
    "a.example/x": "1",
    "b.example/x": "2",
    "org.criu.config": "/etc/x",
    "io.kubernetes.cri.sandbox-id": "x",
  };
  expect(passedAnnotations(["a.*"], pod)).toEqual({ "a.example/x": "1" });
  expect(passedAnnotations(["*"], pod)).toEqual({ "a.example/x": "1", "b.example/x": "2" });
});

describe("under gVisor an annotation that would change the sandbox", () => {
  test("is taken when the profile allows it", () => {
    expect(() => requireAllowed(gvisor, { "dev.gvisor.flag.debug": "true", other: "x" })).not.toThrow();
  });

  test.each([
    "dev.gvisor.flag.network",
    "dev.gvisor.flag.debug-command",
    "dev.gvisor.flag.overlay2",
    "dev.gvisor.spec.mount.v.source",
    "dev.gvisor.spec.cgroup-parent",
    "dev.gvisor.spec.rootfs.source",
    "dev.gvisor.tar.rootfs.upper",
  ])("is refused by name when it does not: %s", (key) => {
    expect(() => requireAllowed(gvisor, { [key]: "x" })).toThrow(
      `Cannot run the pod with annotation "${key}": the profile of handler "sandboxed" does not let a pod set it`,
    );
  });

  test("says nothing to another kind of handler", () => {
    const runc = { name: "runc", allowedAnnotations: [] };
    expect(() => requireAllowed(runc, { "dev.gvisor.flag.network": "host" })).not.toThrow();
  });
});
