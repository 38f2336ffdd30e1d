import fc from "fast-check";
import { expect, test } from "vitest";
import { logPathOf, shownLogPath } from "./log-path.ts";

test.each([
  ["/var/log/pods/ns_p_u", "app/0.log", "/var/log/pods/ns_p_u/app/0.log"],
  ["/var/log/pods/ns_p_u/", "0.log", "/var/log/pods/ns_p_u/0.log"],
  ["/var/log/pods/ns_p_u", "app/../0.log", "/var/log/pods/ns_p_u/0.log"],
  ["/var/log/pods/ns_p_u", "", ""],
  ["", "0.log", ""],
])("logPathOf(%j, %j)", (directory, path, expected) => {
  expect(logPathOf(directory, path)).toBe(expected);
});

test("no path is told as one that is there for nobody: a kubelet removes what begins with it", () => {
  expect(shownLogPath("")).toBe("/run/bulkhead/no-log");
  expect(shownLogPath("/var/log/pods/a/0.log")).toBe("/var/log/pods/a/0.log");
});

test("a log never lies outside the pod's own directory (CVE-2025-0750, CVE-2024-5154)", () => {
  for (const path of ["../x", "a/../../x", "..", ".", "../ns_p_u2/x", "x\0y"])
    expect(() => logPathOf("/var/log/pods/ns_p_u", path)).toThrow("outside the pod's log directory");
  const part = fc.oneof(
    fc.constantFrom("..", ".", "", "a", "/", "ns_p_u", "\0"),
    fc.string({ maxLength: 5 }),
  );
  fc.assert(
    fc.property(fc.array(part, { maxLength: 6 }), (parts) => {
      try {
        const path = logPathOf("/logs/pod", parts.join("/"));
        // A URL goes its own way to where the path leads; what means something in URLs alone is escaped.
        const url = path.split("/").map(encodeURIComponent).join("/");
        if (path !== "") expect(new URL(`file://${url}`).pathname).toMatch(/^\/logs\/pod\/./);
      } catch (error) {
        expect(error).toMatchObject({ code: "invalid-argument" });
      }
    }),
  );
});
