/** A glob over image names: `*` and `?` stay within one part of a path, `**` does not. */
export const globOf = (pattern: string): RegExp =>
  new RegExp(
    `^${pattern.replace(/\*\*|\*|\?|[^*?]+/g, (part) =>
      part === "**" ? ".*" : part === "*" ? "[^/]*" : part === "?" ? "[^/]" : RegExp.escape(part),
    )}$`,
  );
