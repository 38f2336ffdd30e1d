const suffixes: Readonly<Record<string, number>> = {
  ...{ n: 1e-9, u: 1e-6, m: 1e-3, "": 1, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, E: 1e18 },
  ...{ Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40, Pi: 2 ** 50, Ei: 2 ** 60 },
};

/** A quantity as Kubernetes writes them (1.5M, 64Ki, 2e6) as a number; undefined for what is none. */
export const parseQuantity = (text: string): number | undefined => {
  const [, digits, exponent, suffix = ""] =
    /^\+?(\d{1,18}(?:\.\d{0,9})?|\.\d{1,9})(?:[eE]([+-]?\d{1,2})|([A-Za-z]{1,2}))?$/.exec(text) ?? [];
  const unit = exponent === undefined ? suffixes[suffix] : 10 ** Number(exponent);
  return digits === undefined || unit === undefined ? undefined : Number(digits) * unit;
};
