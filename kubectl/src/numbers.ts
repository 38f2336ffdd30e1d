import { InvalidArgumentError } from "commander";

/** Numbers of flags: what is none must not become NaN, of which every comparison is false and every wait has no end. */

const units = { s: 1, m: 60, h: 3600 } as const;

/** Seconds as kubectl's flags write times: `90`, `90s`, `5m`, `1h30m`. */
export const seconds = (text: string): number => {
  const parts = [...text.matchAll(/([0-9]+(?:\.[0-9]+)?)([smh])/g)];
  if (/^[0-9]+(\.[0-9]+)?$/.test(text)) return Number(text);
  if (parts.length === 0 || parts.map(([part]) => part).join("") !== text)
    throw new InvalidArgumentError("Expected seconds, or a time such as 90s, 5m or 1h30m.");
  return parts.reduce((sum, [, digits, unit]) => sum + Number(digits) * units[unit as keyof typeof units], 0);
};

/** The number of a revision. */
export const revisionNumber = (text: string): number => {
  if (!/^[1-9][0-9]{0,14}$/.test(text)) throw new InvalidArgumentError("Expected a number from 1.");
  return Number(text);
};
