import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import fc from "fast-check";
import { pack } from "tar-stream";
import { describe, expect, test } from "vitest";
import { createTarReader, type TarEntry } from "./tar.ts";

const read = (bytes: Uint8Array, cuts: number[] = []) => {
  const found: { entry: TarEntry; body: string }[] = [];
  const parts: Uint8Array[] = [];
  const reader = createTarReader({
    entry: (entry) => void found.push({ entry, body: "" }),
    data: (chunk) => void parts.push(chunk.slice()),
    end: () => {
      found.at(-1)!.body = Buffer.concat(parts.splice(0)).toString("latin1");
    },
  });
  let at = 0;
  for (const cut of [...cuts].sort((a, b) => a - b)) {
    if (cut <= at || cut >= bytes.length) continue;
    reader.push(bytes.subarray(at, cut));
    at = cut;
  }
  reader.push(bytes.subarray(at));
  reader.finish();
  return found;
};

const tarOf = async (...entries: { name: string; body?: string; pax?: Record<string, string> }[]) => {
  const tar = pack();
  for (const { body = "", ...header } of entries) tar.entry(header as { name: string }, body);
  tar.finalize();
  return Buffer.concat(await Array.fromAsync(tar as AsyncIterable<Uint8Array>));
};

/** A header block by hand: what a hostile writer can do. */
const header = (over: { flag?: string; size?: string; mode?: string; name?: string; magic?: string }) => {
  const { flag = "0", size = "0", mode = "644", name = "f", magic = "ustar\x0000" } = over;
  const block = Buffer.alloc(512);
  block.write(name, 0, "latin1");
  block.write(mode, 100, "latin1");
  block.write(size, 124, "latin1");
  block.write(flag, 156, "latin1");
  block.write(magic, 257, "latin1");
  block.fill(" ", 148, 156);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(sum.toString(8).padStart(6, "0"), 148);
  block[154] = 0;
  return block;
};
const padded = (text: string) => {
  const bytes = Buffer.from(text, "latin1");
  return Buffer.concat([bytes, Buffer.alloc((512 - (bytes.length % 512)) % 512)]);
};
const pax = (text: string, flag = "x") => [header({ flag, size: text.length.toString(8) }), padded(text)];
/** "LENGTH KEY=VALUE\n" of `length` bytes. */
const record = (key: string, length: number) => {
  const head = `${length} ${key}=`;
  return `${head}${"a".repeat(length - head.length - 1)}\n`;
};

describe("createTarReader()", () => {
  test("reads the same whatever pieces the tar comes in", async () => {
    const bytes = await tarOf(
      { name: "a", body: "x".repeat(1500) },
      { name: `${"b/".repeat(90)}c`, body: "y" },
    );
    const whole = read(bytes);
    expect(whole.map(({ entry, body }) => [entry.name, body.length])).toEqual([
      ["a", 1500],
      [`${"b/".repeat(90)}c`, 1],
    ]);
    fc.assert(
      fc.property(fc.array(fc.nat(bytes.length)), (cuts) => {
        expect(read(bytes, cuts)).toEqual(whole);
      }),
    );
  });

  test("PAX values are bytes: a binary attribute with newlines and NULs comes through", () => {
    const value = "\x01\x00\x0a=\xff";
    const record = `31 SCHILY.xattr.user.x1234=${value}\n`.replace("31", "33");
    const length = Buffer.from(record, "latin1").length;
    const [found] = read(Buffer.concat([...pax(record.replace("33", `${length}`)), header({})]));
    expect(Buffer.from(found!.entry.xattrs.get("user.x1234")!).toString("latin1")).toBe(value);
  });

  test("a PAX size beyond the header's field is that of the body", () => {
    const [found] = read(Buffer.concat([...pax("10 size=3\n"), header({ size: "0" }), padded("abc")]));
    expect(found?.body).toBe("abc");
  });

  test("old archives without a magic number are read, and a slash makes a directory", () => {
    const [found] = read(header({ magic: "", flag: "\0", name: "old/" }));
    expect(found?.entry).toMatchObject({ type: "directory", name: "old/" });
  });

  test("sizes and owners in base 256 are read", () => {
    const block = header({});
    block.writeUInt32BE(0x80000000, 108);
    block.writeUInt32BE(3_000_000_000, 112);
    block.fill(" ", 148, 156);
    block.write(
      `${block
        .reduce((a, b) => a + b, 0)
        .toString(8)
        .padStart(6, "0")}\0`,
      148,
    );
    expect(read(block)[0]?.entry.uid).toBe(3_000_000_000);
  });

  test.each<[string, Buffer[], RegExp]>([
    ["a wrong checksum", [Buffer.alloc(512, 1)], /checksum|number/],
    ["a negative size", [header({ size: "\xff".repeat(12) })], /size/],
    ["a mode that is no number", [header({ mode: "rwxr-x" })], /mode/],
    ["an unknown type", [header({ flag: "?" })], /unknown type/],
    ["a huge extended header", [header({ flag: "x", size: "77777777" })], /extended header/],
    ["a PAX record that runs over", [...pax("99 path=x\n"), header({})], /PAX record/],
    ["a PAX name with a NUL", [...pax("12 path=a\0b\n"), header({})], /NUL/],
    ["a file that breaks off", [header({ size: "2000" }), padded("x")], /middle/],
    [
      "extended headers that go on and on",
      Array.from({ length: 17 }, (_, n) => pax(record("path", 500), n % 2 === 0 ? "x" : "g")).flat(),
      /more than 16 extended headers/,
    ],
    [
      "global headers of more than 64 KiB together",
      Array.from({ length: 3 }, (_, n) => [
        ...pax(record(`SCHILY.xattr.user.${n}`, 30_000), "g"),
        header({}),
      ]).flat(),
      /global headers/,
    ],
    ["an extended header without an entry", pax("9 a=bcd\n"), /extended header|PAX record/],
  ])("refuses %s", (_, blocks, message) => {
    expect(() => read(Buffer.concat(blocks))).toThrow(message);
  });

  test("of a global header nothing stays but what is read of it", async () => {
    setFlagsFromString("--expose-gc");
    const gc = runInNewContext("gc") as () => void;
    const reader = createTarReader({ entry: () => {}, data: () => {}, end: () => {} });
    gc();
    const before = process.memoryUsage().external;
    for (let n = 0; n < 100; n++) {
      const said = record(`comment.${n}`, 900_000) + record(`SCHILY.xattr.user.${n}`, 200);
      reader.push(Buffer.concat([...pax(said, "g"), header({})]));
    }
    // What is collected is given back by another thread, some time later.
    const kept = () => {
      gc();
      return process.memoryUsage().external - before;
    };
    await expect.poll(kept, { timeout: 30_000 }).toBeLessThan(5_000_000);
    reader.finish();
  });

  test("any bytes give entries or a RuntimeError", () => {
    const mutated = fc.tuple(fc.nat(511), fc.nat(255)).map(([at, value]) => {
      const block = header({ size: "5" });
      block[at] = value;
      return Buffer.concat([block, padded("12345")]);
    });
    const record = fc.string().map((text) => Buffer.concat([...pax(text), header({})]));
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 2000 }), mutated, record), (bytes) => {
        try {
          for (const { entry } of read(bytes)) expect(entry.size).toBeGreaterThanOrEqual(0);
        } catch (error) {
          expect(error).toMatchObject({ name: "RuntimeError", code: "invalid-argument" });
        }
      }),
      { numRuns: 2000 },
    );
  });
});
