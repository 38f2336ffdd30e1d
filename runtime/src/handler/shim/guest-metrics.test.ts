import { expect, test } from "vitest";
import { mergeMetrics, monitorSocket } from "./guest-metrics.ts";

const labels = (pod: string) => ({ pod, namespace: "shop", handler: "vm" });

test("a pod's samples carry its labels before their own", () => {
  const text =
    '# TYPE kata_guest_load gauge\nkata_guest_load{item="load1"} 0.5\nkata_guest_load{item="load5"} 1e-3\n';
  expect(mergeMetrics([{ labels: labels("web"), text }])).toBe(
    [
      "# TYPE kata_guest_load gauge",
      'kata_guest_load{pod="web",namespace="shop",handler="vm",item="load1"} 0.5',
      'kata_guest_load{pod="web",namespace="shop",handler="vm",item="load5"} 1e-3',
      "",
    ].join("\n"),
  );
});

test("a family of several pods stands together, its type once", () => {
  const text = "# HELP kata_shim_threads Threads.\n# TYPE kata_shim_threads gauge\nkata_shim_threads 7\n";
  const merged = mergeMetrics([
    { labels: labels("a"), text },
    { labels: labels("b"), text },
  ]);
  expect(merged.match(/# TYPE/g)).toHaveLength(1);
  expect(merged).toMatch(/pod="a".*\n.*pod="b"/);
});

test("a histogram's sum and count stay, as a summary's; its buckets crowd out nothing", () => {
  const text = [
    "# TYPE kata_agent_seconds histogram",
    ...Array.from({ length: 500 }, (_, i) => `kata_agent_seconds_bucket{le="${i}"} 2`),
    "kata_agent_seconds_sum 1.5",
    "kata_agent_seconds_count 2",
    "# TYPE kata_guest_tasks gauge",
    'kata_guest_tasks{item="cur"} 3',
  ].join("\n");
  expect(mergeMetrics([{ labels: labels("a"), text }]).split("\n")).toEqual([
    "# TYPE kata_agent_seconds summary",
    'kata_agent_seconds_sum{pod="a",namespace="shop",handler="vm"} 1.5',
    'kata_agent_seconds_count{pod="a",namespace="shop",handler="vm"} 2',
    "",
    "# TYPE kata_guest_tasks gauge",
    'kata_guest_tasks{pod="a",namespace="shop",handler="vm",item="cur"} 3',
    "",
  ]);
});

test("what a guest says beside its samples is dropped: other names, broken lines, labels that end early", () => {
  const text = [
    "bulkhead_handler_ready 1",
    'kata_x{a="}\n',
    'kata_y{b="1"} not-a-number',
    "kata_ok 1 1700000000000",
    "# TYPE bulkhead_handler_ready gauge",
  ].join("\n");
  expect(mergeMetrics([{ labels: labels("a"), text }])).toBe(
    'kata_ok{pod="a",namespace="shop",handler="vm"} 1\n',
  );
});

test("of one pod 1000 samples are taken at most, and another pod's are not the fewer for it", () => {
  const many = Array.from({ length: 1500 }, (_, i) => `kata_guest_meminfo{item="i${i}"} 1`).join("\n");
  const merged = mergeMetrics([
    { labels: labels("loud"), text: many },
    { labels: labels("quiet"), text: "kata_guest_meminfo 1" },
  ]);
  expect(merged.match(/pod="loud"/g)).toHaveLength(1000);
  expect(merged.match(/pod="quiet"/g)).toHaveLength(1);
});

test("label values are escaped", () => {
  const odd = { pod: 'a"b\\c', namespace: "n", handler: "h" };
  expect(mergeMetrics([{ labels: odd, text: "kata_ok 1" }])).toContain('pod="a\\"b\\\\c"');
});

test("each of Kata's runtimes has its own directory of sockets", () => {
  expect(monitorSocket({ runtime: "rust" }, "p")).toBe("/run/kata/p/shim-monitor.sock");
  expect(monitorSocket({ runtime: "go" }, "p")).toBe("/run/vc/sbs/p/shim-monitor.sock");
});
