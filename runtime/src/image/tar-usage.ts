/** What a layer takes on disk. */
export type LayerUsage = { bytes: number; inodes: number };

const block = 512;

/** Counts the bytes and entries of a tar that passes by in chunks, from nothing but its headers' size fields. */
export const tarUsage = (): { add: (chunk: Uint8Array) => void; total: () => LayerUsage } => {
  const header = Buffer.alloc(block);
  let filled = 0;
  let skip = 0;
  let bytes = 0;
  let inodes = 0;
  return {
    add: (chunk) => {
      for (let at = 0; at < chunk.length; ) {
        if (skip > 0) {
          const step = Math.min(skip, chunk.length - at);
          skip -= step;
          at += step;
          continue;
        }
        const step = Math.min(block - filled, chunk.length - at);
        header.set(chunk.subarray(at, at + step), filled);
        filled += step;
        at += step;
        if (filled < block) continue;
        filled = 0;
        const size = tarSize(header);
        skip = Math.ceil(size / block) * block;
        // Extended headers (pax x and g, GNU L and K) describe another entry.
        if (header[0] !== 0 && !"xgLK".includes(String.fromCharCode(header[156] ?? 0))) {
          inodes++;
          bytes += size;
        }
      }
    },
    total: () => ({ bytes, inodes }),
  };
};

/** Size field of a tar header: octal text, or base 256 when its first bit is set. */
const tarSize = (header: Buffer): number => {
  if ((header[124] ?? 0) & 0x80) return Number(header.readBigUInt64BE(128) & 0xff_ffff_ffffn);
  const text = header
    .toString("latin1", 124, 136)
    .replace(/[\0 ]+$/g, "")
    .trim();
  return /^[0-7]+$/.test(text) ? Number.parseInt(text, 8) : 0;
};
