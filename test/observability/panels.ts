import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { load } from "js-yaml";

/** The chart's dashboards and rules, as far as tests look at them. */

export const monitoring = join(import.meta.dirname, "../../charts/bulkhead");
export const rulesFile = join(monitoring, "monitoring/rules.yaml");

export type Panel = {
  id: number;
  type: string;
  title: string;
  description?: string;
  gridPos: { x: number; y: number; w: number; h: number };
  targets?: { expr: string }[];
};
export type Dashboard = {
  uid: string;
  title: string;
  panels: Panel[];
  templating: { list: { name: string; type: string; definition?: string }[] };
};

export const dashboards = async (): Promise<Dashboard[]> =>
  Promise.all(
    (await readdir(join(monitoring, "dashboards"))).map(
      async (name) => JSON.parse(await readFile(join(monitoring, "dashboards", name), "utf8")) as Dashboard,
    ),
  );

export type Rule = { record?: string; alert?: string; expr: string; annotations?: Record<string, string> };

export const rules = async (): Promise<Rule[]> => {
  const { groups } = load(await readFile(rulesFile, "utf8")) as { groups: { rules: Rule[] }[] };
  return groups.flatMap((group) => group.rules);
};

/** A panel's expression as Grafana sends it, with every variable at "All". */
export const filled = (expr: string): string =>
  expr.replaceAll("$__rate_interval", "1m").replaceAll(/\$(profile|namespace|handler|instance)\b/g, ".*");
