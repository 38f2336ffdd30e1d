import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { execute } from "../host.ts";
import { bootGuest } from "./facts.ts";

/** The probe of KVM where there is none; where KVM boots guests: test/vm/cgroup-v2.vm.test.ts. */

let dir: string;
let probe: string;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "bulkhead-kvm-probe-"));
  probe = join(dir, "kvm-probe");
  const compile = ["cc", "-Os", "-static", "-o", probe, join(import.meta.dirname, "kvm-probe.c")];
  expect(await execute(compile, { signal: AbortSignal.timeout(60_000) })).toMatchObject({ code: 0 });
});
afterAll(() => rm(dir, { recursive: true, force: true }));

test("what is no KVM, or is not there, is told in the kernel's words", async () => {
  expect(await bootGuest(probe, "/dev/null")).toEqual({
    runs: false,
    why: "KVM_GET_API_VERSION: Inappropriate ioctl for device",
  });
  expect(await bootGuest(probe, join(dir, "none"))).toEqual({
    runs: false,
    why: `${join(dir, "none")}: No such file or directory`,
  });
  expect((await bootGuest(join(dir, "no-probe"), "/dev/kvm")).why).toContain("ENOENT");
});
