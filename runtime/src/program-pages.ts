export type Range = { start: number; length: number };

const header = /^([0-9a-f]+)-([0-9a-f]+) r-([-x])p \S+ \S+ \d+ +(.*)$/;

/**
 * Where the program at `path` is mapped read-only and not a page of it is our own copy, by /proc/PID/smaps (proc(5)).
 * These pages can be let go of at any time: the kernel has them in the file. A copy (relocations) cannot.
 */
export const programPages = (smaps: string, path: string): Range[] => {
  const ranges: Range[] = [];
  let range: Range | undefined;
  for (const line of smaps.split("\n")) {
    const found = header.exec(line);
    if (found) {
      const start = Number.parseInt(found[1]!, 16);
      range = found[4] === path ? { start, length: Number.parseInt(found[2]!, 16) - start } : undefined;
    } else if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) range = undefined;
    else if (range && /^Anonymous: +0 kB$/.test(line)) {
      ranges.push(range);
      range = undefined;
    }
  }
  return ranges;
};
