import { expect, test } from "vitest";
import { drivesOf } from "./drives.ts";

const pod = "p".repeat(64);
const jail = `/run/kata/firecracker/${pod}/root`;
const mountinfo = [
  "22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw",
  `31 22 0:25 /kata/firecracker/${pod}/root ${jail} rw shared:2 - tmpfs tmpfs rw`,
  `40 31 254:0 /opt/kata/vmlinux ${jail}/vmlinux rw master:1 - ext4 /dev/vda rw`,
  `41 31 254:0 /var/lib/bulkhead/disks/one.ext4 ${jail}/drive2 rw master:1 - ext4 /dev/vda rw`,
  `42 31 254:1 /disks/two.ext4//deleted ${jail}/drive3 rw master:1 - ext4 /dev/vdb rw`,
  `43 31 254:1 /disks/two.ext4 /run/kata/firecracker/other/root/drive1 rw master:1 - ext4 /dev/vdb rw`,
  "",
].join("\n");

test("the drives of a container are those that show its disk, removed or not, in its own pod", () => {
  expect(drivesOf(mountinfo, pod, "one")).toEqual([`${jail}/drive2`]);
  expect(drivesOf(mountinfo, pod, "two")).toEqual([`${jail}/drive3`]);
  expect(drivesOf(mountinfo, pod, "tw")).toEqual([]);
  expect(drivesOf(mountinfo, "q".repeat(64), "one")).toEqual([]);
});
