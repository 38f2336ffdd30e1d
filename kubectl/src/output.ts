import { dump } from "js-yaml";

export const formats = ["table", "wide", "json", "yaml"] as const;
export type Format = (typeof formats)[number];

/** A view for machines, or the text that `human` makes of it. Fields of views stay as they are from version to version. */
export const format = <T>(view: T, as: Format, human: (view: T, wide: boolean) => string): string => {
  switch (as) {
    case "json":
      return `${JSON.stringify(view, null, 2)}\n`;
    case "yaml":
      return dump(JSON.parse(JSON.stringify(view)));
    case "wide":
      return human(view, true);
    case "table":
      return human(view, false);
  }
};
