import type { LabelSelector } from "@bulkhead/lib/api/tenancy.ts";

type Requirement = NonNullable<LabelSelector["matchExpressions"]>[number];

const requirements = ({ matchLabels = {}, matchExpressions = [] }: LabelSelector): Requirement[] => [
  ...Object.entries(matchLabels).map(
    ([key, value]): Requirement => ({ key, operator: "In", values: [value] }),
  ),
  ...matchExpressions,
];

const holds = ({ key, operator, values = [] }: Requirement, labels: Record<string, string>): boolean => {
  const value = labels[key];
  switch (operator) {
    case "In":
      return value !== undefined && values.includes(value);
    case "NotIn":
      return value === undefined || !values.includes(value);
    case "Exists":
      return value !== undefined;
    case "DoesNotExist":
      return value === undefined;
  }
};

/** True when the selector takes in an object with these labels, as the API server would have it. */
export const selects = (selector: LabelSelector, labels: Record<string, string>): boolean =>
  requirements(selector).every((requirement) => holds(requirement, labels));

/** A CEL literal of a string, or of a list of strings. */
export const celLiteral = (value: string | string[]): string => JSON.stringify(value);

const celOf = ({ key, operator, values = [] }: Requirement, labels: string): string => {
  const name = celLiteral(key);
  const has = `${name} in ${labels}`;
  switch (operator) {
    case "In":
      return `(${has} && ${labels}[${name}] in ${celLiteral(values)})`;
    case "NotIn":
      return `!(${has} && ${labels}[${name}] in ${celLiteral(values)})`;
    case "Exists":
      return `(${has})`;
    case "DoesNotExist":
      return `!(${has})`;
  }
};

/** The same as `selects`, as a CEL expression over `labels`, itself an expression of a map of strings. */
export const celSelects = (selector: LabelSelector, labels: string): string =>
  requirements(selector)
    .map((requirement) => celOf(requirement, labels))
    .join(" && ");
