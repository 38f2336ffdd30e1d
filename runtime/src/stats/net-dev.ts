export type Interface = {
  name: string;
  rxBytes: bigint;
  rxPackets: bigint;
  rxErrors: bigint;
  rxDropped: bigint;
  txBytes: bigint;
  txPackets: bigint;
  txErrors: bigint;
  txDropped: bigint;
};

/** proc(5), /proc/net/dev: all interfaces but loopback. */
export const parseNetDev = (text: string): Interface[] =>
  text.split("\n").flatMap((line) => {
    const [, name, figures] = /^\s*([^:\s]+):\s*(.+)$/.exec(line) ?? [];
    if (name === undefined || figures === undefined || name === "lo") return [];
    const all = figures.trim().split(/\s+/);
    if (all.length < 12 || !all.every((each) => /^\d+$/.test(each))) return [];
    const at = (i: number): bigint => BigInt(all[i] ?? 0);
    return [
      {
        ...{ name, rxBytes: at(0), rxPackets: at(1), rxErrors: at(2), rxDropped: at(3) },
        ...{ txBytes: at(8), txPackets: at(9), txErrors: at(10), txDropped: at(11) },
      },
    ];
  });
