/** True when `labels` has every pair of `selector`. */
export const hasLabels = (
  labels: Readonly<Record<string, string>>,
  selector: Readonly<Record<string, string>> | undefined,
): boolean => Object.entries(selector ?? {}).every(([key, value]) => labels[key] === value);

/** Ids are matched as people type them: by prefix; no id matches all. */
export const hasId = (id: string, wanted: string | undefined): boolean => id.startsWith(wanted ?? "");
