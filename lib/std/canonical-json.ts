/** JSON with sorted keys and without undefined: equal values give equal text, for hashes and comparisons. */
export const canonicalJson = (value: unknown): string =>
  JSON.stringify(value, (_key, inner: unknown) =>
    typeof inner === "object" && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  ) ?? "null";

type Fields = Record<string, unknown>;
const given = (object: object): string[] =>
  Object.keys(object).filter((key) => (object as Fields)[key] !== undefined);

/** True when both would be the same JSON. Makes no text: this is asked of every report of every node. */
export const sameJson = (one: unknown, other: unknown): boolean => {
  if (one === other) return true;
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null)
    return (one ?? null) === (other ?? null);
  if (Array.isArray(one) || Array.isArray(other)) {
    if (!Array.isArray(one) || !Array.isArray(other) || one.length !== other.length) return false;
    return one.every((item, index) => sameJson(item, other[index]));
  }
  const keys = given(one);
  return (
    keys.length === given(other).length &&
    keys.every((key) => {
      const value = Object.hasOwn(other, key) ? (other as Fields)[key] : undefined;
      return value !== undefined && sameJson((one as Fields)[key], value);
    })
  );
};
