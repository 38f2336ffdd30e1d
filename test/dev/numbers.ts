import { InvalidArgumentError } from "commander";

/** A flag's whole number from `least`: what is none would be NaN, of which every comparison is false. */
export const wholeNumber =
  (least: number) =>
  (text: string): number => {
    if (!/^[0-9]{1,9}$/.test(text) || Number(text) < least)
      throw new InvalidArgumentError(`Expected a whole number from ${least}.`);
    return Number(text);
  };
