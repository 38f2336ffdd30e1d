import { copyFile, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { load } from "js-yaml";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { debianProgram, debianPrograms } from "../tools/debian.ts";
import { outcome } from "../tools/run.ts";
import { dashboards, rules, rulesFile } from "./panels.ts";

/** What promtool says of the chart's rules, and that rules, runbook and dashboards hang together. */

let directory: string;
let promtool: string;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "bh-rules-"));
  await copyFile(rulesFile, join(directory, "rules.yaml"));
  await copyFile(join(import.meta.dirname, "rules.test.yaml"), join(directory, "rules.test.yaml"));
  promtool = await debianProgram(debianPrograms.promtool.pkg, debianPrograms.promtool.path);
});
afterAll(() => rm(directory, { recursive: true }));

test.each([
  ["takes every rule", "check", "rules.yaml"],
  ["sees each alert fire when it must, and not before", "test", "rules.test.yaml"],
])("promtool %s", async (_title, verb, file) => {
  const { code, stdout, stderr } = await outcome([promtool, verb, "rules", file], { cwd: directory });
  expect(`${stdout}${stderr}`).toContain("SUCCESS");
  expect(code).toBe(0);
});

test("every alert has a case of its own, and a heading of the runbook that it links to", async () => {
  const alerts = (await rules()).flatMap(({ alert, annotations }) => (alert ? [{ alert, annotations }] : []));
  const { tests } = load(await readFile(join(import.meta.dirname, "rules.test.yaml"), "utf8")) as {
    tests: { alert_rule_test?: { alertname: string; exp_alerts: unknown[] }[] }[];
  };
  const fires = new Set(
    tests.flatMap((each) =>
      (each.alert_rule_test ?? [])
        .filter(({ exp_alerts }) => exp_alerts.length > 0)
        .map(({ alertname }) => alertname),
    ),
  );
  expect([...fires].sort()).toEqual(alerts.map(({ alert }) => alert).sort());
  const runbook = await readFile(join(import.meta.dirname, "../../docs/runbook.md"), "utf8");
  const headings = [...(runbook.split("## Alerts")[1] ?? "").matchAll(/^### (\w+)$/gm)].map(
    ([, name]) => name,
  );
  expect(headings.sort()).toEqual([...fires].sort());
  for (const { alert, annotations } of alerts)
    expect(annotations?.runbook_url, alert).toBe(`RUNBOOK#${alert.toLowerCase()}`);
});

describe("Each dashboard", async () => {
  test.each((await dashboards()).map((dashboard) => [dashboard.title, dashboard] as const))(
    "%s: panels have a number, a place and a description of their own",
    (_title, { panels }) => {
      expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
      for (const panel of panels.filter(({ type }) => type !== "row"))
        expect(panel.description, panel.title).toMatch(/\S/);
      for (const [index, one] of panels.entries())
        for (const other of panels.slice(index + 1)) {
          const [a, b] = [one.gridPos, other.gridPos];
          const apart = a.x + a.w <= b.x || b.x + b.w <= a.x || a.y + a.h <= b.y || b.y + b.h <= a.y;
          expect(apart, `${one.title} and ${other.title}`).toBe(true);
          expect(a.x + a.w).toBeLessThanOrEqual(24);
        }
    },
  );
});
