export type Interface = {
  name: string;
  rxBytes: bigint;
  rxErrors: bigint;
  txBytes: bigint;
  txErrors: bigint;
};

/** proc(5), /proc/net/dev: all interfaces but loopback. */
export const parseNetDev = (text: string): Interface[] =>
  text.split("\n").flatMap((line) => {
    const [, name, figures] = /^\s*([^:\s]+):\s*(.+)$/.exec(line) ?? [];
    if (name === undefined || figures === undefined || name === "lo") return [];
    const [rxBytes, , rxErrors, , , , , , txBytes, , txErrors] = figures.trim().split(/\s+/);
    if (rxBytes === undefined || txErrors === undefined) return [];
    return [
      {
        name,
        rxBytes: BigInt(rxBytes),
        rxErrors: BigInt(rxErrors ?? 0),
        txBytes: BigInt(txBytes ?? 0),
        txErrors: BigInt(txErrors),
      },
    ];
  });
