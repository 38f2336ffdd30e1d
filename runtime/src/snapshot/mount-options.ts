/** Options as mount(2) takes them. A label has commas in it; SELinux takes the quotes off. */
export const joinOptions = (options: readonly [key: string, value: string][]): string =>
  options
    .map(([key, value]) => (value === "" ? key : `${key}=${key === "context" ? `"${value}"` : value}`))
    .join(",");

/** That all files are shown under this SELinux label (mount(8), context=). */
export const contextOf = (label: string | undefined): [string, string][] =>
  label === undefined ? [] : [["context", label]];
