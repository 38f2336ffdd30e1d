/// <reference lib="dom" />
/// <reference lib="dom.iterable" />
import { once } from "node:events";
import type { Server } from "node:http";
import type { NodeRuntime, ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import { type RuntimeProfile, RuntimeProfileSpec } from "@bulkhead/lib/api/runtime-profile.ts";
import { storeOf } from "@bulkhead/lib/kube/store.ts";
import { type Browser, launchChromium, type Page, screenshot } from "@bulkhead/test/observability/browser.ts";
import express from "express";

import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { addPage } from "./page.ts";
import type { Fleet } from "./views.ts";

/** The page in a real Chromium: both colour schemes, the keyboard, a rollout as it happens, no request elsewhere. */

const now = Date.now();
const ago = (seconds: number): string => new Date(now - seconds * 1000).toISOString();

const outside = [{ namespace: "tenant-c", pods: 2, example: "old-1", reason: "HostPath" }];
const profile = (name: string, ready: number, failed: string[] = []): RuntimeProfile => ({
  apiVersion: "bulkhead.dev/v1alpha1",
  kind: "RuntimeProfile",
  metadata: { name, generation: 1 },
  spec: RuntimeProfileSpec.parse({ handler: name === "standard" ? { runc: {} } : { gvisor: {} } }),
  status: {
    nodes: { desired: 4, updated: ready, ready, failed: failed.length },
    updateRevision: "0123456789",
    pods: 7,
    ...(name === "sandboxed" ? { tenancy: { namespaces: 3, podsOutside: 2, outside } } : {}),
    failedNodes: failed.map((node) => ({
      name: node,
      reason: "CanaryFailed",
      message: "kernel-differs: the kernel is the node's",
    })),
    conditions: [
      {
        type: "Ready",
        status: ready === 4 ? "True" : "False",
        reason: ready === 4 ? "AllNodesReady" : "NodesNotReady",
        message: `${ready} of 4 nodes are ready`,
        lastTransitionTime: ago(90),
      },
    ],
  },
});
const reported = (name: string, phase: ProfileStatus["phase"]): ProfileStatus => ({
  name,
  phase,
  revision: phase === "Ready" ? "0123456789" : "",
  reason: phase === "Ready" ? "CanaryPassed" : phase === "Failed" ? "CanaryFailed" : phase,
  message: phase === "Failed" ? "kernel-differs: the kernel is the node's" : "",
  pods: { "tenant-a": 3, "tenant-b": 1 },
  canary: {
    passed: phase === "Ready",
    at: ago(20),
    startSeconds: 0.7,
    kernel: "4.19.0-gvisor",
    assertions: ["kernel-differs"],
    failures: phase === "Ready" ? 0 : 4,
  },
});
const node = (name: string, phase: ProfileStatus["phase"]): NodeRuntime => ({
  apiVersion: "bulkhead.dev/v1alpha1",
  kind: "NodeRuntime",
  metadata: { name },
  spec: { profiles: [] },
  status: {
    heartbeat: ago(4),
    kernel: "6.1.0-18-amd64",
    arch: "amd64",
    engine: {
      name: "containerd",
      version: "2.4.2",
      socket: "/run/containerd/containerd.sock",
      fronted: true,
    },
    profiles: [reported("standard", "Ready"), reported("sandboxed", phase)],
  },
});
const fleetAt = (ready: number): Fleet => ({
  now: Date.now(),
  staleAfterMs: 180_000,
  profiles: storeOf([profile("standard", 4), profile("sandboxed", ready, ready < 4 ? ["node-4"] : [])]),
  nodeRuntimes: storeOf([
    node("node-1", "Ready"),
    node("node-2", ready > 1 ? "Ready" : "Installing"),
    node("node-3", ready > 2 ? "Ready" : "Installing"),
    node("node-4", ready > 3 ? "Ready" : "Failed"),
  ]),
});

let fleet: Fleet;
let server: Server;
let origin: string;
let browser: Browser;
let page: Page;
const strange: string[] = [];

beforeAll(async () => {
  const app = express();
  addPage(app, () => fleet);
  server = app.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  origin = `http://127.0.0.1:${address !== null && typeof address === "object" ? address.port : 0}`;
  browser = await launchChromium();
});
afterAll(async () => {
  await browser?.close();
  server?.close();
});
beforeEach(async () => {
  fleet = fleetAt(1);
  await page?.close();
  page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  page.on("request", (request) => {
    if (!request.url().startsWith(origin)) strange.push(request.url());
  });
  page.on("console", (message) => {
    if (message.type() === "error" && !message.text().includes("favicon")) strange.push(message.text());
  });
  page.on("pageerror", (error) => strange.push(error.message));
});

describe.each(["light", "dark"] as const)("In %s", (colorScheme) => {
  test.each([
    ["fleet", "/"],
    ["profile", "/profiles/sandboxed"],
    ["node", "/nodes/node-4"],
    ["tenants", "/tenants"],
    ["tenant", "/tenants/tenant-c"],
  ])("%s: text stands out from its ground by at least 4.5 to 1", async (name, path) => {
    await page.emulateMedia({ colorScheme });
    await page.goto(origin + path);
    await page.screenshot({ path: await screenshot(`${name}-${colorScheme}`), fullPage: true });
    // WCAG 2.2, 1.4.3: relative luminance of the text's colour against the nearest ground that is painted.
    const weak = await page.evaluate(() => {
      const channels = (colour: string): number[] => {
        const canvas = document.createElement("canvas").getContext("2d")!;
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
      };
      const luminance = (colour: string): number => {
        const [r = 0, g = 0, b = 0] = channels(colour)
          .slice(0, 3)
          .map((value) => value / 255)
          .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ground = (element: Element | null): string => {
        if (element === null) return "white";
        const { backgroundColor } = getComputedStyle(element);
        return channels(backgroundColor)[3] === 0 ? ground(element.parentElement) : backgroundColor;
      };
      return [...document.querySelectorAll("body *:not(script):not(style)")]
        .filter((element) =>
          [...element.childNodes].some((child) => child.nodeType === 3 && child.textContent?.trim()),
        )
        .map((element) => {
          const [a, b] = [luminance(getComputedStyle(element).color), luminance(ground(element))].sort(
            (x, y) => y - x,
          );
          return {
            text: element.textContent?.trim().slice(0, 40),
            ratio: ((a ?? 0) + 0.05) / ((b ?? 0) + 0.05),
          };
        })
        .filter(({ ratio }) => ratio < 4.5);
    });
    expect(weak).toEqual([]);
  });
});

test("by keyboard alone one comes from the fleet to a failed node and reads what to do", async () => {
  await page.goto(origin);
  await page.keyboard.press("Tab");
  expect(await page.evaluate(() => document.activeElement?.textContent)).toBe("Skip to the content");
  const tabTo = async (text: string): Promise<void> => {
    for (let presses = 0; presses < 60; presses++) {
      if ((await page.evaluate(() => document.activeElement?.textContent)) === text) return;
      await page.keyboard.press("Tab");
    }
    throw new Error(`Cannot reach "${text}" by Tab`);
  };
  await tabTo("sandboxed");
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement!).outlineStyle);
  expect(outline).toBe("solid");
  await page.keyboard.press("Enter");
  await page.waitForURL("**/profiles/sandboxed");
  await tabTo("node-4");
  await page.keyboard.press("Enter");
  await page.waitForURL("**/nodes/node-4");
  expect(await page.getByText("What to do").first().textContent()).toContain(
    "the installer's log on that node",
  );
});

test("a rollout is seen as it goes on, without a reload, and the focus stays", async () => {
  await page.goto(`${origin}/profiles/sandboxed`);
  const ready = page.locator(".steps li", { hasText: "Ready" });
  expect(await ready.textContent()).toBe("1 Ready");
  const link = page.getByRole("link", { name: "node-1" }).first();
  await link.focus();
  fleet = fleetAt(4);
  await page.waitForFunction(
    () => document.querySelector(".steps")?.textContent?.includes("4 Ready"),
    undefined,
    {
      timeout: 15_000,
    },
  );
  expect(await page.evaluate(() => document.activeElement?.textContent)).toBe("node-1");
  await page.screenshot({ path: await screenshot("rollout-done"), fullPage: true });
});

test("on a phone nothing is wider than the screen but tables, which scroll", async () => {
  await page.setViewportSize({ width: 390, height: 800 });
  for (const path of ["/", "/profiles/sandboxed", "/nodes/node-4", "/tenants"]) {
    await page.goto(origin + path);
    expect(await page.evaluate(() => document.documentElement.scrollWidth), path).toBeLessThanOrEqual(390);
  }
});

test("a screen reader finds landmarks, headings in order and named tables", async () => {
  for (const path of ["/", "/profiles/sandboxed", "/nodes/node-4", "/tenants", "/tenants/tenant-c"]) {
    await page.goto(origin + path);
    const levels = await page
      .locator("h1, h2, h3")
      .evaluateAll((all) => all.map((each) => Number(each.tagName[1])));
    expect(levels[0], path).toBe(1);
    for (const [index, level] of levels.slice(1).entries())
      expect(level - (levels[index] ?? 0), path).toBeLessThan(2);
    expect(await page.getByRole("main").count()).toBe(1);
    for (const table of await page.getByRole("table").all())
      expect(
        await table.evaluate((element) => (element as HTMLTableElement).caption?.textContent),
        path,
      ).toMatch(/\S/);
  }
});

test("without JavaScript everything is there", async () => {
  const plain = await browser.newPage({ javaScriptEnabled: false });
  await plain.goto(`${origin}/profiles/sandboxed`);
  expect(await plain.getByRole("link", { name: "node-4" }).count()).toBeGreaterThan(0);
  await plain.close();
});

test("no request went elsewhere, and nothing failed in the page", () => {
  expect(strange).toEqual([]);
});
