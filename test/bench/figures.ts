/** One measured thing under both engines. Less is better, unless `more`. */
export type Row = {
  name: string;
  unit: "ms" | "s" | "MB" | "pods/s" | "%";
  containerd: number;
  bulkhead: number;
  more?: true;
  /** The ratio that issue 4 wants; `limit` is one for our own figure. */
  goal?: number;
  limit?: number;
};

/** The value below which a share `q` of them lie. */
export const quantile = (values: readonly number[], q: number): number => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN;
};

/** Ours to theirs. */
export const ratioOf = ({ containerd, bulkhead }: Row): number => bulkhead / containerd;

/** Whether the goal is met; undefined without one. */
export const meets = (row: Row): boolean | undefined => {
  if (row.limit !== undefined) return row.bulkhead <= row.limit;
  if (row.goal === undefined) return undefined;
  return row.more ? ratioOf(row) >= row.goal : ratioOf(row) <= row.goal;
};

const number = (value: number): string =>
  value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);

const goalText = (row: Row): string => {
  const met = meets(row);
  if (met === undefined) return "";
  const bound =
    row.limit !== undefined ? `≤ ${row.limit} ${row.unit}` : `${row.more ? "≥" : "≤"} ${row.goal}`;
  return `${bound} ${met ? "✓" : "✗"}`;
};

/** The rows as a table of Markdown. */
export const tableOf = (rows: readonly Row[]): string =>
  [
    "| | containerd | Bulkhead | ratio | goal |",
    "|---|---|---|---|---|",
    ...rows.map(
      (row) =>
        `| ${row.name} | ${number(row.containerd)} ${row.unit} | ${number(row.bulkhead)} ${row.unit} | ${ratioOf(row).toFixed(2)} | ${goalText(row)} |`,
    ),
  ].join("\n");

const escaped = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/**
 * The ratios as bars (SVG): containerd is the line at 1, and to the left of it is better. Where more is better the
 * ratio is turned round, so that it is so for every bar.
 */
export const chartOf = (rows: readonly Row[], title: string): string => {
  const [left, width, line] = [250, 420, 22];
  const cost = (row: Row): number => (row.more ? 1 / ratioOf(row) : ratioOf(row));
  const most = 2;
  const at = (value: number): number => left + (Math.min(value, most) / most) * width;
  const height = 60 + rows.length * line;
  const bars = rows.map((row, index) => {
    const y = 46 + index * line;
    const bound = row.goal === undefined ? undefined : row.more ? 1 / row.goal : row.goal;
    return [
      `<text x="${left - 8}" y="${y + 12}" text-anchor="end">${escaped(row.name)}</text>`,
      `<rect x="${left}" y="${y}" width="${Math.max(0, at(cost(row)) - left).toFixed(1)}" height="15" fill="${cost(row) <= 1 ? "#2f7d5b" : "#b5543c"}"/>`,
      `<text x="${at(cost(row)) + 5}" y="${y + 12}">${cost(row).toFixed(2)}</text>`,
      bound === undefined
        ? ""
        : `<line x1="${at(bound)}" y1="${y - 2}" x2="${at(bound)}" y2="${y + 17}" stroke="#111" stroke-width="2"/>`,
    ].join("");
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${left + width + 60}" height="${height}" font-family="sans-serif" font-size="12" role="img">
<title>Bulkhead's cost beside containerd's</title>
<rect width="100%" height="100%" fill="#fff"/>
<text x="10" y="18" font-size="14">${escaped(title)}</text>
<text x="10" y="34" fill="#555">Bulkhead's cost as a part of containerd's: less is better; containerd is 1, a thick mark is the goal</text>
<line x1="${at(1)}" y1="40" x2="${at(1)}" y2="${height - 8}" stroke="#888" stroke-dasharray="3 3"/>
${bars.join("\n")}
</svg>
`;
};
