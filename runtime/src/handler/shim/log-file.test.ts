import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, expect, test } from "vitest";
import { LINE_LIMIT } from "../../logs/cri-log.ts";
import { LogFile } from "./log-file.ts";

const root = mkdtempSync(join(tmpdir(), "bh-log-file-"));
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

test("whatever is written can be read again, by stream", () => {
  const piece = fc.oneof(
    fc.uint8Array({ maxLength: 64 }),
    fc.string({ unit: fc.constantFrom("a", "\n"), maxLength: 64 }).map((text) => Buffer.from(text)),
    fc.integer({ min: LINE_LIMIT - 2, max: 2 * LINE_LIMIT + 2 }).map((length) => Buffer.alloc(length, "x")),
  );
  const writes = fc.array(fc.tuple(fc.constantFrom("stdout" as const, "stderr" as const), piece), {
    maxLength: 20,
  });
  fc.assert(
    fc.property(writes, (pieces) => {
      const path = newPath();
      const log = new LogFile(path);
      for (const [stream, chunk] of pieces) log.write(stream, chunk);
      log.close();
      const got = read(readFileSync(path));
      for (const name of ["stdout", "stderr"] as const) {
        const given = pieces.filter(([stream]) => stream === name).map(([, chunk]) => chunk);
        expect(got[name].equals(Buffer.concat(given))).toBe(true);
      }
    }),
    { numRuns: 100 },
  );
});

test("after reopen() the new file exists, the old one gets nothing more and nothing is lost", () => {
  const path = newPath();
  const log = new LogFile(path);
  log.write("stdout", Buffer.from("before\nhalf"));
  renameSync(path, `${path}.1`);
  log.reopen();
  expect(existsSync(path)).toBe(true);
  log.write("stdout", Buffer.from(" line\n"));
  log.close();
  expect(read(readFileSync(`${path}.1`)).stdout.toString()).toBe("before\nhalf");
  expect(read(readFileSync(path)).stdout.toString()).toBe(" line\n");
});

test("the path of a log is not followed when it is a link", () => {
  const path = newPath();
  new LogFile(path).close();
  symlinkSync("/etc/passwd", `${path}.link`);
  expect(() => new LogFile(`${path}.link`)).toThrow(/ELOOP/);
});
