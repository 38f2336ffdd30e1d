import { execFile } from "node:child_process";
import { copyFile, mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { bootGuest } from "@bulkhead/node-agent/installer/kata/facts.ts";
import { afterAll, beforeAll, expect, test } from "vitest";
import { run } from "../tools/run.ts";
import { debianKernel, modulePaths } from "./kernel.ts";

/**
 * The probe of KVM where KVM boots guests, an emulated processor with virtualization of its own, and where it does not.
 */

const source = join(import.meta.dirname, "../../node-agent/src/installer/kata/kvm-probe.c");
let dir: string;
let probe: string;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "bulkhead-kvm-probe-"));
  probe = join(dir, "kvm-probe");
  await run(["cc", "-Os", "-static", "-o", probe, source]);
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const init = `#!/bin/sh
mount -t devtmpfs dev /dev
for module in irqbypass kvm ccp kvm-amd; do [ -e /$module.ko ] && insmod /$module.ko; done
echo "PROBE $(/kvm-probe /dev/kvm)"
poweroff -f
`;

test("a guest boots where the processor has virtualization, seen in a machine that QEMU emulates", async () => {
  const kernel = await debianKernel();
  const tree = join(dir, "initrd");
  for (const each of ["bin", "dev"]) await mkdir(join(tree, each), { recursive: true });
  await copyFile("/bin/busybox", join(tree, "bin/busybox"));
  for (const name of ["sh", "mount", "insmod", "poweroff", "["])
    await symlink("busybox", join(tree, "bin", name));
  await copyFile(probe, join(tree, "kvm-probe"));
  await writeFile(join(tree, "init"), init, { mode: 0o755 });
  const modules = await modulePaths(kernel);
  for (const name of ["irqbypass", "kvm", "ccp", "kvm-amd"]) {
    const path = modules.get(name.replace("-", "_")) ?? modules.get(name);
    if (path !== undefined) await copyFile(path, join(tree, `${name}.ko`));
  }
  const initrd = join(dir, "initrd.gz");
  await run(["sh", "-c", `cd "$1" && find . | busybox cpio -o -H newc | gzip -1 >"$2"`, "sh", tree, initrd]);
  const { stdout } = await promisify(execFile)(
    "qemu-system-x86_64",
    [
      ...["-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "512"],
      ...["-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio"],
      ...["-kernel", kernel.image, "-initrd", initrd],
      ...["-append", "console=ttyS0 mitigations=off nokaslr quiet panic=-1"],
    ],
    { timeout: 120_000 },
  );
  expect(stdout).toContain("PROBE runs");
}, 150_000);

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
