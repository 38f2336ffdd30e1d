import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { CriLog, LINE_LIMIT, LineCutter, timestamp } from "./cri-log.ts";

const root = mkdtempSync(join(tmpdir(), "bh-cri-log-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let serial = 0;
const newPath = () => join(root, String(++serial), "0.log");

/** What kubelet makes of a log: the text of each stream. */
const read = (log: Buffer) => {
  const streams: Record<string, Buffer[]> = { stdout: [], stderr: [] };
  for (let at = 0; at < log.length; ) {
    const end = log.indexOf("\n", at);
    expect(end).toBeGreaterThan(0);
    const line = log.subarray(at, end);
    const head = line.toString("latin1", 0, 40);
    const [, stream, tag] =
      /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([PF]) /.exec(head) ?? [];
    expect(stream).toBeDefined();
    const text = line.subarray(`${head.slice(0, 30)} ${stream} ${tag} `.length);
    expect(text.length).toBeLessThanOrEqual(LINE_LIMIT);
    streams[stream!]!.push(text, Buffer.from(tag === "F" ? "\n" : ""));
    at = end + 1;
  }
  return { stdout: Buffer.concat(streams.stdout!), stderr: Buffer.concat(streams.stderr!) };
};

describe("a line", () => {
  const cut = (...chunks: string[]) => {
    const cutter = new LineCutter("stdout");
    const lines = [...chunks.map((chunk) => cutter.cut(Buffer.from(chunk), "T")), cutter.flush("T")];
    return Buffer.concat(lines).toString();
  };

  test("is full with its newline, wherever the chunks are cut", () => {
    expect(cut("a", "b\nc", "\n", "\n")).toBe("T stdout F ab\nT stdout F c\nT stdout F \n");
  });

  test("without a newline at the end is a part", () => {
    expect(cut("a\nb")).toBe("T stdout F a\nT stdout P b\n");
  });

  test("of exactly the limit is full when its newline is there, and a part and an empty rest when it comes later", () => {
    const full = "x".repeat(LINE_LIMIT);
    expect(cut(`${full}\n`)).toBe(`T stdout F ${full}\n`);
    expect(cut(full, "\n")).toBe(`T stdout P ${full}\nT stdout F \n`);
    expect(cut(`${full}y\n`)).toBe(`T stdout P ${full}\nT stdout F y\n`);
  });
});

test("timestamp() is RFC3339Nano with nine digits", () => {
  expect(timestamp(0)).toBe("1970-01-01T00:00:00.000000000Z");
  expect(timestamp(1_700_000_000_123.5)).toBe("2023-11-14T22:13:20.123500000Z");
});

test("whatever is written can be read again, by stream", async () => {
  const piece = fc.oneof(
    fc.uint8Array({ maxLength: 64 }),
    fc.string({ unit: fc.constantFrom("a", "\n"), maxLength: 64 }).map((text) => Buffer.from(text)),
    fc.integer({ min: LINE_LIMIT - 2, max: 2 * LINE_LIMIT + 2 }).map((length) => Buffer.alloc(length, "x")),
  );
  const writes = fc.array(fc.tuple(fc.constantFrom("stdout" as const, "stderr" as const), piece), {
    maxLength: 20,
  });
  await fc.assert(
    fc.asyncProperty(writes, async (pieces) => {
      const path = newPath();
      const log = await CriLog.open(path);
      for (const [stream, chunk] of pieces) await log.write(stream, chunk);
      await log.close();
      const got = read(readFileSync(path));
      for (const name of ["stdout", "stderr"] as const) {
        const given = pieces.filter(([stream]) => stream === name).map(([, chunk]) => chunk);
        expect(got[name].equals(Buffer.concat(given))).toBe(true);
      }
    }),
    { numRuns: 100 },
  );
});

test("after reopen() the new file exists, the old one gets nothing more and nothing is lost", async () => {
  const path = newPath();
  const log = await CriLog.open(path);
  await log.write("stdout", Buffer.from("before\nhalf"));
  renameSync(path, `${path}.1`);
  await log.reopen();
  expect(existsSync(path)).toBe(true);
  await log.write("stdout", Buffer.from(" line\n"));
  await log.close();
  expect(read(readFileSync(`${path}.1`)).stdout.toString()).toBe("before\n");
  expect(read(readFileSync(path)).stdout.toString()).toBe("half line\n");
});

test("write() makes a fast writer wait, so that little is held in memory", async () => {
  const log = await CriLog.open(newPath());
  const chunk = Buffer.alloc(128 * 1024, "y\n");
  const settled: number[] = [];
  const waits = Array.from({ length: 8 }, (_, i) => log.write("stdout", chunk).then(() => settled.push(i)));
  await new Promise<void>((resolve) => queueMicrotask(() => queueMicrotask(resolve)));
  expect(settled.length).toBeLessThan(3);
  await Promise.all(waits);
  await log.close();
});

test("a closed log takes nothing more, and says so", async () => {
  const log = await CriLog.open(newPath());
  await log.close();
  await log.close();
  await expect(log.write("stdout", Buffer.from("x"))).rejects.toThrow(/is closed$/);
  await expect(log.reopen()).rejects.toThrow(/is closed$/);
});

test("the path of a log is not followed when it is a link", async () => {
  const path = newPath();
  await (await CriLog.open(path)).close();
  const { symlinkSync } = await import("node:fs");
  symlinkSync("/etc/passwd", `${path}.link`);
  await expect(CriLog.open(`${path}.link`)).rejects.toThrow(/ELOOP/);
});
