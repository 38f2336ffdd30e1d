import { describe, expect, test } from "vitest";
import { LINE_LIMIT, LineCutter, timestamp } from "./cri-log.ts";

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
