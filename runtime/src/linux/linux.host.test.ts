import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readlinkSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { createServer, Socket } from "node:net";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { MountFlags } from "./linux.ts";
import { createLinux } from "./linux-ffi.ts";

const linux = createLinux();
let dir: string;
const mounted: string[] = [];

beforeAll(() => {
  dir = mkdtempSync("/tmp/bh-linux-");
});
afterEach(async () => {
  for (const target of mounted.splice(0).reverse())
    await linux.umount(target, MountFlags.DETACH).catch(() => {});
});
afterAll(() => rmSync(dir, { recursive: true }));

const fresh = (name: string) => {
  const path = join(dir, name);
  mkdirSync(path);
  return path;
};
const file = (name: string) => {
  const path = join(dir, name);
  writeFileSync(path, "");
  return path;
};
const namespaceOf = (path: string) => statSync(path).ino;
const ownNamespaces = () => ["net", "ipc", "uts"].map((kind) => readlinkSync(`/proc/thread-self/ns/${kind}`));

describe("mount()", () => {
  test("mounts, and umount() takes it away", async () => {
    const target = fresh("tmpfs");
    await linux.mount("tmpfs", target, "tmpfs", MountFlags.NOSUID, "size=1m");
    expect(linux.statfs(target)).toMatchObject({ type: 0x01021994, blocks: 256n });
    await linux.umount(target, 0);
    expect(linux.statfs(target).type).not.toBe(0x01021994);
  });

  test("throws what node:fs would throw", async () => {
    await expect(linux.mount("tmpfs", join(dir, "absent"), "tmpfs", 0, "")).rejects.toMatchObject({
      code: "ENOENT",
      errno: -2,
      syscall: "mount",
      path: join(dir, "absent"),
    });
  });

  test("refuses a path with a NUL byte instead of cutting it", async () => {
    await expect(linux.mount("tmpfs", `${dir}\0x`, "tmpfs", 0, "")).rejects.toMatchObject({ code: "EINVAL" });
  });
});

describe("umount()", () => {
  test("says EINVAL when nothing is mounted, though it runs on another thread", async () => {
    await expect(linux.umount(dir, 0)).rejects.toMatchObject({ code: "EINVAL", syscall: "umount2" });
  });

  test("says EBUSY while a file is open; DETACH works then", async () => {
    const target = fresh("busy");
    await linux.mount("tmpfs", target, "tmpfs", 0, "");
    mounted.push(target);
    const fd = openSync(join(target, "x"), "w");
    try {
      await expect(linux.umount(target, 0)).rejects.toMatchObject({ code: "EBUSY" });
      await linux.umount(target, MountFlags.DETACH);
    } finally {
      closeSync(fd);
    }
  });
});

describe("mountWith()", () => {
  test("stacks layers beyond the page that mount(2) has for options", () => {
    const store = fresh("store");
    // overlayfs on overlayfs has no place for xattrs of its own; a tmpfs has.
    linux.mountWith("tmpfs", [["size", "16m"]], store, 0);
    mounted.push(store);
    const lower = Array.from({ length: 100 }, (_, n) => {
      const path = join(store, `${"layer".repeat(10)}-${n}`);
      mkdirSync(path);
      writeFileSync(join(path, `file-${n}`), `${n}`);
      return path;
    });
    const target = join(store, "merged");
    mkdirSync(target);
    linux.mountWith(
      "overlay",
      lower.map((path): [string, string] => ["lowerdir+", path]),
      target,
      MountFlags.RDONLY | MountFlags.NODEV,
    );
    mounted.push(target);
    expect(readFileSync(join(target, "file-0"), "utf8")).toBe("0");
    expect(readFileSync(join(target, "file-99"), "utf8")).toBe("99");
    expect(() => writeFileSync(join(target, "x"), "")).toThrow(/EROFS/);
  });

  test("names the file system's own complaint", () => {
    expect(() => linux.mountWith("tmpfs", [["no-such-option", "1"]], dir, 0)).toThrow(
      expect.objectContaining({
        code: "EINVAL",
        parameter: "no-such-option",
        log: [expect.stringContaining("Unknown parameter")],
      }),
    );
  });
});

test("mknod() makes the device node that was asked for, minor numbers over 255 included", () => {
  const path = join(dir, "device");
  linux.mknod(path, 0o020600, 1, 259);
  const { mode, rdev } = statSync(path);
  expect(mode).toBe(0o020600);
  expect(rdev).toBe(0x100103);
});

test("mkfifo() makes a FIFO", () => {
  const path = join(dir, "fifo");
  linux.mkfifo(path, 0o600);
  expect(statSync(path).isFIFO()).toBe(true);
});

test("extended attributes come back as they were set, and undefined when they are absent", () => {
  const path = file("xattr");
  linux.lsetxattr(path, "trusted.bulkhead", Buffer.from([0, 1, 255]));
  expect(linux.lgetxattr(path, "trusted.bulkhead")).toEqual(new Uint8Array([0, 1, 255]));
  expect(linux.lgetxattr(path, "trusted.absent")).toBeUndefined();
  expect(() => linux.lgetxattr(join(dir, "absent"), "trusted.x")).toThrow(/ENOENT/);
});

describe("pinNamespaces()", () => {
  test("pins finished namespaces and leaves the thread where it was", async () => {
    const files = { net: file("net"), ipc: file("ipc"), uts: file("uts") };
    const before = ownNamespaces();
    await linux.pinNamespaces(files, "pod-a");
    mounted.push(...Object.values(files));
    expect(ownNamespaces()).toEqual(before);
    for (const path of Object.values(files)) expect(linux.statfs(path).type).toBe(0x6e736673);
    expect(before).not.toContain(`net:[${namespaceOf(files.net)}]`);
    const inside = (...command: string[]) =>
      execFileSync("nsenter", [`--net=${files.net}`, `--uts=${files.uts}`, ...command], { encoding: "utf8" });
    expect(inside("hostname").trim()).toBe("pod-a");
    expect(inside("cat", "/proc/net/if_inet6")).toMatch(/lo\n$/);
    expect(inside("cat", "/proc/net/dev")).not.toMatch(/eth/);
  });

  test("leaves the thread where it was when a file is missing", async () => {
    const before = ownNamespaces();
    await expect(linux.pinNamespaces({ net: join(dir, "absent") }, "")).rejects.toMatchObject({
      code: "ENOENT",
    });
    expect(ownNamespaces()).toEqual(before);
  });
});

describe("addAddress()", () => {
  const netns = async (name: string) => {
    const net = file(name);
    await linux.pinNamespaces({ net }, "");
    mounted.push(net);
    const ip = (...command: string[]) =>
      execFileSync("nsenter", [`--net=${net}`, "ip", ...command], { encoding: "utf8" });
    ip("link", "add", "eth0", "type", "bridge");
    return { net, ip };
  };

  test("adds IPv4 and IPv6 addresses inside the namespace, and leaves those that are there", async () => {
    const { net, ip } = await netns("address");
    const before = ownNamespaces();
    for (const cidr of ["10.1.2.3/24", "fd00:1::3/64", "10.1.2.3/24", "fd00:1::3/64"])
      linux.addAddress(net, "eth0", cidr);
    const shown = ip("-o", "addr", "show", "dev", "eth0");
    expect(shown.match(/inet6? \S+/g)).toEqual(["inet 10.1.2.3/24", "inet6 fd00:1::3/64"]);
    expect(ownNamespaces()).toEqual(before);
  });

  test("says what the kernel says", async () => {
    const { net } = await netns("address-errors");
    expect(() => linux.addAddress(net, "absent", "10.1.2.3/24")).toThrow(/ENODEV.*absent/);
    expect(() => linux.addAddress(net, "eth0", "10.1.2.3/33")).toThrow(/EINVAL.*RTM_NEWADDR/);
    expect(() => linux.addAddress(net, "eth0", "10.1.2.300/24")).toThrow(/EINVAL/);
    expect(() => linux.addAddress(net, "eth0", "10.1.2.3")).toThrow(/EINVAL/);
  });
});

describe("addresses() and addBridge()", () => {
  test("make an interface inside the namespace, once, and read what is on it", async () => {
    const net = file("bridge");
    await linux.pinNamespaces({ net }, "");
    mounted.push(net);
    const before = ownNamespaces();
    expect(linux.addresses(net, "eth0")).toEqual([]);
    linux.addBridge(net, "eth0");
    linux.addBridge(net, "eth0");
    linux.addAddress(net, "lo", "10.1.2.3/24");
    expect(linux.addresses(net, "lo")).toContain("10.1.2.3/24");
    expect(execFileSync("nsenter", [`--net=${net}`, "ip", "-br", "link"], { encoding: "utf8" })).toContain(
      "eth0",
    );
    expect(linux.addresses("", "eth0")).not.toContain("10.1.2.3/24");
    expect(() => linux.addBridge(net, "a name that is too long")).toThrow(/EINVAL/);
    expect(ownNamespaces()).toEqual(before);
  });
});

describe("dialIn()", () => {
  test("connects inside the namespace and nowhere else", async () => {
    const net = file("dial");
    await linux.pinNamespaces({ net }, "");
    mounted.push(net);
    const server = createServer((socket) => socket.end("from the host"));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as { port: number };
    await expect(linux.dialIn(net, "127.0.0.1", port)).rejects.toMatchObject({ code: "ECONNREFUSED" });

    const inside = spawn("nsenter", [
      ...[`--net=${net}`, "socat", "-u", "EXEC:echo from the pod"],
      `TCP6-LISTEN:${port},bind=[::1]`,
    ]);
    try {
      let fd: number | undefined;
      for (let tries = 0; fd === undefined && tries < 100; tries++) {
        fd = await linux.dialIn(net, "::1", port).catch(() => undefined);
        if (fd === undefined) await new Promise((resolve) => setTimeout(resolve, 20));
      }
      const text = await new Socket({ fd: fd! }).setEncoding("utf8").toArray();
      expect(text.join("")).toBe("from the pod\n");
    } finally {
      inside.kill();
      server.close();
    }
  });

  test('"" is the namespace of the daemon', async () => {
    const server = createServer((socket) => socket.end("host"));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const fd = await linux.dialIn("", "127.0.0.1", (server.address() as { port: number }).port);
    expect((await new Socket({ fd }).setEncoding("utf8").toArray()).join("")).toBe("host");
    server.close();
  });
});

describe("connectUnix()", () => {
  test("reaches a stream socket whose path is longer than an address holds", async () => {
    const deep = join(dir, "d".repeat(100), "e".repeat(100));
    mkdirSync(deep, { recursive: true });
    // Node cannot listen there by the long path either: bind relative to the directory.
    const child = spawn("socat", ["-u", "EXEC:echo long", "UNIX-LISTEN:s"], { cwd: deep });
    try {
      for (let tries = 0; tries < 100; tries++) {
        try {
          const fd = linux.connectUnix(join(deep, "s"), "stream");
          expect((await new Socket({ fd }).setEncoding("utf8").toArray()).join("")).toBe("long\n");
          return;
        } catch {
          await new Promise((resolve) => setTimeout(resolve, 20));
        }
      }
      expect.fail("never connected");
    } finally {
      child.kill();
    }
  });

  test("says ENOENT and ECONNREFUSED", () => {
    expect(() => linux.connectUnix(join(dir, "absent"), "seqpacket")).toThrow(/ENOENT/);
    expect(() => linux.connectUnix(file("no-socket"), "stream")).toThrow(/ECONNREFUSED/);
  });
});

test("kill() signals the process that was meant, and no later one of the same number", async () => {
  const child = spawn("sleep", ["60"]);
  await once(child, "spawn");
  const stat = readFileSync(`/proc/${child.pid}/stat`, "utf8");
  const startTime = BigInt(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]!);
  expect(linux.kill(child.pid!, startTime + 1n, 15)).toBe(false);
  expect(linux.kill(child.pid!, startTime, 15)).toBe(true);
  expect(await once(child, "exit")).toEqual([null, "SIGTERM"]);
  expect(linux.kill(child.pid!, startTime, 15)).toBe(false);
});

test("tee() copies what is in a pipe and leaves it there", () => {
  const [a, b] = [join(dir, "tee-a"), join(dir, "tee-b")];
  for (const path of [a, b]) linux.mkfifo(path, 0o600);
  const [fdA, fdB] = [openSync(a, "r+"), openSync(b, "r+")];
  writeFileSync(fdA, "twice");
  expect(linux.tee(fdA, fdB, 100)).toBe(5);
  const buffer = Buffer.alloc(10);
  for (const fd of [fdA, fdB]) {
    expect(buffer.toString("utf8", 0, readSync(fd, buffer))).toBe("twice");
  }
  expect(() => linux.tee(fdA, fdB, 1)).toThrow(/EAGAIN/);
  for (const fd of [fdA, fdB]) closeSync(fd);
});

test("splice() moves what is in a pipe to a place in a file", () => {
  const [pipe, to] = [join(dir, "splice-pipe"), file("splice-file")];
  linux.mkfifo(pipe, 0o600);
  const [fdPipe, fdTo] = [openSync(pipe, "r+"), openSync(to, "w")];
  writeFileSync(fdPipe, "moved and left");
  expect(linux.splice(fdPipe, fdTo, 4, 5)).toBe(5);
  expect(readFileSync(to, "latin1")).toBe("\0\0\0\0moved");
  const buffer = Buffer.alloc(20);
  expect(buffer.toString("utf8", 0, readSync(fdPipe, buffer))).toBe(" and left");
  for (const fd of [fdPipe, fdTo]) closeSync(fd);
});

test("fsync() takes files and directories", async () => {
  await linux.fsync(dir);
  await linux.fsync(file("synced"));
  await expect(linux.fsync(join(dir, "absent"))).rejects.toMatchObject({ code: "ENOENT" });
});
