import { execFileSync } from "node:child_process";
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { readAccounts } from "./accounts.ts";
import { resolveCdi } from "./cdi.ts";
import { readSeccomp } from "./seccomp-file.ts";

/* What SPECIFICATION.md promises of the sizes of files that a container's creation reads. */

const most = 4 * 1024 * 1024;
let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "bh-bounds-"));
});
afterEach(() => rm(dir, { recursive: true }));

/** A text of exactly so many bytes. */
const filled = (text: string, bytes: number): string => text.padEnd(bytes, " ");

describe("CDI files", () => {
  const spec = (name: string): string =>
    JSON.stringify({
      cdiVersion: "0.6.0",
      kind: "example.com/device",
      devices: [{ name, containerEdits: { env: [`DEVICE=${name}`] } }],
    });
  const resolve = (name: string) => resolveCdi([`example.com/device=${name}`], [dir]);

  test("of 4 MiB are read, larger ones are not, and the error says why", async () => {
    await writeFile(join(dir, "a.json"), filled(spec("a"), most));
    await writeFile(join(dir, "b.json"), filled(spec("b"), most + 1));
    expect(await resolve("a")).toMatchObject([{}, { env: ["DEVICE=a"] }]);
    await expect(resolve("b")).rejects.toMatchObject({
      code: "not-found",
      message: expect.stringContaining(`b.json: larger than ${most} bytes`),
    });
  });

  test("beyond the 256th of a directory are not read, and the error says so", async () => {
    const name = (n: number): string => `d${String(n).padStart(3, "0")}`;
    for (let n = 1; n <= 257; n++) await writeFile(join(dir, `${name(n)}.json`), spec(name(n)));
    expect(await resolve(name(256))).toMatchObject([{}, { env: ["DEVICE=d256"] }]);
    await expect(resolve(name(257))).rejects.toThrow(`${dir}: more than 256 files`);
  });

  test("whose aliases multiply what is in them are refused at once", async () => {
    const lists = Array.from({ length: 12 }, (_, n) =>
      n === 0
        ? "x0: &x0 [a=b]"
        : `x${n}: &x${n} [${Array(30)
            .fill(`*x${n - 1}`)
            .join(",")}]`,
    );
    await writeFile(join(dir, "bomb.yaml"), `${lists.join("\n")}\nkind: example.com/device\n`);
    const begun = performance.now();
    await expect(resolve("any")).rejects.toThrow(/bomb\.yaml: .*aliases/);
    expect(performance.now() - begun).toBeLessThan(20_000);
  });

  test("that are FIFOs hold nobody up", async () => {
    execFileSync("mkfifo", [join(dir, "fifo.yaml")]);
    await expect(resolve("any")).rejects.toThrow("fifo.yaml: not a regular file");
  });
});

describe("A seccomp profile", () => {
  const profile = JSON.stringify({ defaultAction: "SCMP_ACT_ALLOW" });

  test("of 4 MiB is read, a larger one is refused by name", async () => {
    const path = join(dir, "profile.json");
    await writeFile(path, filled(profile, most));
    expect(await readSeccomp(path)).toEqual({ defaultAction: "SCMP_ACT_ALLOW" });
    await writeFile(path, filled(profile, most + 1));
    await expect(readSeccomp(path)).rejects.toMatchObject({
      code: "invalid-argument",
      message: `Cannot use seccomp profile "${path}": larger than ${most} bytes`,
    });
  });
});

describe("An image's passwd and group", () => {
  test.each(["passwd", "group"])("%s of 4 MiB is read, a larger one is refused by name", async (file) => {
    await mkdir(join(dir, "etc"));
    // The longest work there is within the bound: as many entries as fit.
    const line = "u:x:1:1\n";
    const text = line.repeat(most / line.length);
    await writeFile(join(dir, "etc", file), text);
    const begun = performance.now();
    expect((await readAccounts(dir))[file as "passwd" | "group"]).toHaveLength(most / line.length);
    expect(performance.now() - begun).toBeLessThan(20_000);
    await writeFile(join(dir, "etc", file), `${text}\n`);
    await expect(readAccounts(dir)).rejects.toMatchObject({
      code: "invalid-argument",
      message: `Cannot read /etc/${file} of the image: larger than ${most} bytes`,
    });
  });

  test("are read inside the image, whatever links say, and are nothing else than files", async () => {
    await mkdir(join(dir, "etc"));
    await symlink("../../../../../../../../etc/passwd", join(dir, "etc", "passwd"));
    execFileSync("mknod", [join(dir, "etc", "group"), "c", "1", "5"]);
    // The link leads to itself inside the image: too many links.
    await expect(readAccounts(dir)).rejects.toThrow(/Cannot resolve "\/etc\/passwd"/);
    await rm(join(dir, "etc", "passwd"));
    expect(await readAccounts(dir)).toEqual({ passwd: [], group: [] });
  });
});
