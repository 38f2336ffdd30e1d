import { bounded, invalid, number, type Pax, paxNumber, paxText } from "./tar-field.ts";

/**
 * Sparse files as GNU tar writes them (GNU tar manual, "Storing Sparse Files"): the old form in the header and
 * blocks behind it, and the PAX forms 0.0, 0.1 and 1.0. Whatever the form, the body is the pieces one after another.
 */
export type Piece = { offset: number; length: number };

/** 24 bytes each in the old form. */
const PIECES_MAX = 500_000;

/** Where the map of a sparse file is still to be read from before its data comes. */
export type SparseMap = { pieces: Piece[] } & (
  | { rest: "none" }
  /** Blocks of 21 pieces each, beside the size of the body. */
  | { rest: "blocks" }
  /** Decimal lines at the beginning of the body, filled up to a block. */
  | { rest: "lines" }
);

/** What the extended headers say, or undefined when the file is an ordinary one. */
export const sparseOfPax = (
  pax: Pax,
): { name: string | undefined; size: number; map: SparseMap } | undefined => {
  const name = paxText(pax, "GNU.sparse.name");
  const version = `${paxText(pax, "GNU.sparse.major") ?? "0"}.${paxText(pax, "GNU.sparse.minor") ?? "1"}`;
  if (version === "1.0") {
    const size = paxNumber(pax, "GNU.sparse.realsize") ?? paxNumber(pax, "GNU.sparse.size");
    if (size === undefined) throw invalid("a sparse file without a size");
    return { name, size: bounded(size, Number.MAX_SAFE_INTEGER, "size"), map: { pieces: [], rest: "lines" } };
  }
  const list = paxText(pax, "GNU.sparse.map");
  if (list === undefined) {
    if (pax.has("GNU.sparse.major")) throw invalid(`a sparse file of the unknown format ${version}`);
    return undefined;
  }
  const size = paxNumber(pax, "GNU.sparse.size") ?? paxNumber(pax, "GNU.sparse.realsize");
  if (size === undefined) throw invalid("a sparse file without a size");
  const numbers = list.split(",").map(decimal);
  return {
    name,
    size: bounded(size, Number.MAX_SAFE_INTEGER, "size"),
    map: { pieces: pairsOf(numbers), rest: "none" },
  };
};

/** The old form: flag "S", four pieces in the header, the real size behind them. */
export const sparseOfHeader = (header: Buffer): NonNullable<ReturnType<typeof sparseOfPax>> => {
  const pieces: Piece[] = [];
  piecesOf(header, 386, 4, pieces);
  return {
    name: undefined,
    size: number(header, 483, 12, "size"),
    map: { pieces, rest: header[482] === 0 ? "none" : "blocks" },
  };
};

/** Takes one more block of the old form's map; true when another one comes. */
export const takeBlock = (block: Buffer, pieces: Piece[]): boolean => {
  piecesOf(block, 0, 21, pieces);
  if (pieces.length > PIECES_MAX) throw invalid("a sparse file of too many pieces");
  return block[504] !== 0;
};

const piecesOf = (bytes: Buffer, at: number, count: number, into: Piece[]): void => {
  for (let n = 0; n < count; n++) {
    const from = at + n * 24;
    // An entry of NULs ends the list.
    if (bytes[from] === 0) return;
    into.push({
      offset: number(bytes, from, 12, "sparse map"),
      length: number(bytes, from + 12, 12, "sparse map"),
    });
  }
};

/** Reads the map of format 1.0 line by line. `push` says how many bytes were the map's, -1 when it wants more. */
export const createLineMap = (pieces: Piece[]): { push(byte: number): boolean } => {
  let digits = "";
  let expected = -1;
  let offset: number | undefined;
  return {
    /** True with the last byte of the map. */
    push(byte) {
      if (byte !== 10) {
        digits += String.fromCharCode(byte);
        if (digits.length > 16) throw invalid("a sparse map that is none");
        return false;
      }
      const value = decimal(digits);
      digits = "";
      if (expected < 0) {
        if (value > PIECES_MAX) throw invalid("a sparse file of too many pieces");
        expected = value;
      } else if (offset === undefined) offset = value;
      else {
        pieces.push({ offset, length: value });
        offset = undefined;
      }
      return pieces.length === expected && offset === undefined;
    },
  };
};

const decimal = (digits: string): number => {
  if (!/^\d{1,16}$/.test(digits)) throw invalid("a sparse map that is none");
  return Number(digits);
};

const pairsOf = (numbers: number[]): Piece[] => {
  if (numbers.length % 2 !== 0) throw invalid("a sparse map that is none");
  if (numbers.length / 2 > PIECES_MAX) throw invalid("a sparse file of too many pieces");
  return Array.from({ length: numbers.length / 2 }, (_, n) => ({
    offset: numbers[n * 2]!,
    length: numbers[n * 2 + 1]!,
  }));
};

/** Refuses pieces that overlap, go backwards or beyond the file, or that are not as long as the body. */
export const checkPieces = (pieces: readonly Piece[], size: number, body: number): void => {
  let end = 0;
  let sum = 0;
  for (const { offset, length } of pieces) {
    if (offset < end || offset + length > size) throw invalid("a sparse map that does not fit its file");
    end = offset + length;
    sum += length;
  }
  if (sum !== body) throw invalid("a sparse map that does not fit its data");
};
