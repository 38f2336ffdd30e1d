/** Text for people: columns, and colours on a terminal. */

export type Tone = "good" | "bad" | "warn" | "faint" | "strong";
/** A piece of text and how it is meant. */
export type Cell = string | { text: string; tone: Tone };
export type Paint = (text: string, tone: Tone) => string;

const codes: Record<Tone, number> = { good: 32, bad: 31, warn: 33, faint: 2, strong: 1 };

/** Colours by ANSI escapes (ECMA-48 SGR), or none at all. */
export const painter =
  (colours: boolean): Paint =>
  (text, tone) =>
    colours && text !== "" ? `\u001b[${codes[tone]}m${text}\u001b[0m` : text;

const textOf = (cell: Cell): string => (typeof cell === "string" ? cell : cell.text);

/** Whatever stands in objects of the cluster may be a tenant's: no control character reaches the terminal. */
export const harmless = (text: string): string => text.replace(/\p{Cc}+/gu, " ");

/** Columns under their titles, three spaces apart, as kubectl's. */
export const table = (titles: string[], rows: Cell[][], paint: Paint): string => {
  const all: Cell[][] = [titles, ...rows].map((row) =>
    row.map((cell) =>
      typeof cell === "string" ? harmless(cell) : { text: harmless(cell.text), tone: cell.tone },
    ),
  );
  const widths = titles.map((_title, column) =>
    Math.max(...all.map((row) => textOf(row[column] ?? "").length)),
  );
  return all
    .map((row) =>
      row
        .map((cell, column) => {
          const text = textOf(cell);
          const space = " ".repeat(column === row.length - 1 ? 0 : (widths[column] ?? 0) - text.length + 3);
          return (typeof cell === "string" ? text : paint(text, cell.tone)) + space;
        })
        .join("")
        .trimEnd(),
    )
    .map((line) => `${line}\n`)
    .join("");
};
