/** Markup whose values were escaped: what `html` made. */
export type Html = { readonly markup: string };

const escapes: Record<string, string> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};
const escaped = (text: string): string => text.replace(/[&<>"']/g, (character) => escapes[character] ?? "");

type Value = string | number | Html | readonly Html[] | undefined | false;
const render = (value: Value): string => {
  if (value === undefined || value === false) return "";
  if (typeof value === "string" || typeof value === "number") return escaped(String(value));
  return "markup" in value ? value.markup : value.map(({ markup }) => markup).join("");
};

/** Markup from a template. Every value is text and is escaped, in elements and in quoted attributes, unless it is Html. */
export const html = (parts: TemplateStringsArray, ...values: Value[]): Html => ({
  markup: parts.reduce((all, part, index) => all + render(values[index - 1]) + part),
});
