import { once } from "node:events";
import type { Server } from "node:http";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import { type RuntimeProfile, RuntimeProfileSpec } from "@bulkhead/lib/api/runtime-profile.ts";
import { storeOf } from "@bulkhead/lib/kube/store.ts";
import { AgentRollout } from "@bulkhead/lib/view/agents.ts";
import express from "express";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { html } from "./html.ts";
import { addPage } from "./page.ts";
import { type Fleet, pageSize } from "./views.ts";

const now = Date.parse("2026-11-27T12:00:00Z");
const ago = (seconds: number): string => new Date(now - seconds * 1000).toISOString();
const evil = `<script>alert("x")</script>`;

const profile: RuntimeProfile = {
  apiVersion: "bulkhead.dev/v1alpha1",
  kind: "RuntimeProfile",
  metadata: { name: "sandboxed", generation: 1 },
  spec: RuntimeProfileSpec.parse({ handler: { gvisor: {} } }),
  status: {
    nodes: { desired: 3, updated: 2, ready: 1, failed: 1 },
    updateRevision: "0123456789",
    failedNodes: [{ name: "n1", reason: "CanaryFailed", message: evil }],
    conditions: [
      { type: "Degraded", status: "True", reason: "NodesFailed", message: evil, lastTransitionTime: ago(60) },
    ],
  },
};
const node = (name: string, more: Partial<NodeRuntime["status"]> = {}): NodeRuntime => ({
  apiVersion: "bulkhead.dev/v1alpha1",
  kind: "NodeRuntime",
  metadata: { name },
  spec: { profiles: [] },
  status: {
    heartbeat: ago(5),
    profiles: [
      {
        name: "sandboxed",
        phase: "Failed",
        revision: "0123456789",
        reason: "CanaryFailed",
        message: evil,
        pods: { "tenant-a": 2 },
        canary: {
          passed: false,
          at: ago(9),
          startSeconds: 1,
          kernel: "6.1",
          assertions: ["kernel-differs"],
          failures: 3,
        },
      },
    ],
    ...more,
  },
});

let fleet: Fleet | undefined;
let server: Server;
let origin: string;
beforeAll(async () => {
  const app = express();
  addPage(app, () => fleet);
  server = app.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  origin = `http://127.0.0.1:${address !== null && typeof address === "object" ? address.port : 0}`;
});
afterAll(() => server.close());

const get = async (path: string, from: Fleet | undefined) => {
  fleet = from;
  const answer = await fetch(origin + path);
  return { status: answer.status, headers: answer.headers, text: await answer.text() };
};
const all: Fleet = {
  now,
  staleAfterMs: 180_000,
  profiles: storeOf([profile]),
  nodeRuntimes: storeOf([node("n1")]),
};

test("html escapes every value, and takes markup that it made itself", () => {
  expect(html`<a href="${`"'&`}">${"<b>"}${html`<i>${1}</i>`}${undefined}</a>`.markup).toBe(
    `<a href="&quot;&#39;&amp;">&lt;b&gt;<i>1</i></a>`,
  );
});

describe.each(["/", "/profiles/sandboxed", "/nodes/n1", "/tenants", "/tenants/tenant-a", "/nothing"])(
  "%s",
  (path) => {
    test("lets no text of the cluster become markup, and may run no script but its own", async () => {
      const { text, headers } = await get(path, all);
      expect(text).not.toContain(evil);
      expect(headers.get("content-security-policy")).toMatch(
        /default-src 'none'.*script-src 'sha256-[^']+'$/,
      );
      expect(headers.get("content-security-policy")).not.toContain("unsafe");
    });
  },
);

test("a failed node tells its reason and what to do", async () => {
  const { text } = await get("/nodes/n1", all);
  expect(text).toContain("CanaryFailed");
  expect(text).toContain("What to do: the handler is installed");
  expect((await get("/profiles/sandboxed", all)).text).toContain("What to do: the handler is installed");
});

test("Bulkhead's own version is told with how far it came, and where it failed", async () => {
  const failed = { name: "n1", state: "failed", reason: "EngineFailed", message: evil } as const;
  const agents: NonNullable<Fleet["agents"]> = {
    daemonSet: { name: "d", namespace: "home", uid: "u" },
    ...{ version: "2.0", settings: AgentRollout.parse({}), reason: "FailureThreshold", message: evil },
    paused: false,
    nodes: [failed],
    count: { ready: 3, updating: 0, waiting: 2, failed: 1, unreachable: 0 },
  };
  const { text } = await get("/", { ...all, agents });
  expect(text).toContain("own version <code>2.0</code>");
  expect(text).toContain("<b>2</b> waiting");
  expect(text).toContain("EngineFailed</span>");
  expect(text).not.toContain(evil);
  expect((await get("/", all)).text).not.toContain("own version");
});

test("a tenant's pods on a node whose canary failed are not proven", async () => {
  expect((await get("/tenants", all)).text).toContain("2 not proven");
});

test("what an agent said before it fell silent proves no tenant's wall", async () => {
  const [reported] = node("n1").status?.profiles ?? [];
  const proven = { ...reported!, phase: "Ready" as const, canary: { ...reported!.canary!, passed: true } };
  const heard = (seconds: number): Fleet => ({
    ...all,
    nodeRuntimes: storeOf([node("n1", { heartbeat: ago(seconds), profiles: [proven] })]),
  });
  expect((await get("/tenants", heard(5))).text).toContain('<span class="badge good">proven</span>');
  expect((await get("/tenants", heard(600))).text).toContain("2 not proven");
  expect((await get("/profiles/sandboxed", heard(600))).text).toContain("silent for 10m");
});

test("pods outside their wall are told with their tenant, though no agent reports them", async () => {
  const outside = [{ namespace: "tenant-x", pods: 3, example: "old", reason: "HostPath" }];
  const tenanted: RuntimeProfile = {
    ...profile,
    spec: RuntimeProfileSpec.parse({
      handler: { gvisor: {} },
      tenancy: { namespaceSelector: { matchLabels: { tier: "tenant" } }, mode: "Enforce" },
    }),
    status: { ...profile.status, tenancy: { namespaces: 2, podsOutside: 3, outside } },
  };
  const from: Fleet = { ...all, profiles: storeOf([tenanted]) };
  for (const path of ["/tenants", "/tenants/tenant-x", "/profiles/sandboxed"])
    expect((await get(path, from)).text).toMatch(/tenant-x[\s\S]*3[\s\S]*old[\s\S]*HostPath/);
  expect((await get("/profiles/sandboxed", from)).text).toContain("Enforce: 2 namespaces, 3 pods outside");
  expect((await get("/tenants/tenant-y", from)).status).toBe(404);
});

test("a condition that is wrong looks so, and says what to do; one that is as it was asked for does not", async () => {
  const at = ago(60);
  const conditions = [
    { type: "RolledBack", status: "True", reason: "EngineFailed", message: "", lastTransitionTime: at },
    { type: "RuntimeReady", status: "True", reason: "Serving", message: "", lastTransitionTime: at },
  ] as const;
  const { text } = await get("/nodes/n1", {
    ...all,
    nodeRuntimes: storeOf([node("n1", { conditions: [...conditions] })]),
  });
  expect(text).toMatch(/RolledBack<\/th><td><span class="badge bad">True.*read the message, then that unit/);
  expect(text).toMatch(/RuntimeReady<\/th><td><span class="badge good">True/);
  const audited: RuntimeProfile = {
    ...profile,
    status: {
      conditions: [
        { type: "TenancyEnforced", status: "False", reason: "Audit", message: "", lastTransitionTime: at },
      ],
    },
  };
  const page = await get("/profiles/sandboxed", { ...all, profiles: storeOf([audited]) });
  expect(page.text).toMatch(/TenancyEnforced<\/th><td><span class="badge idle">False/);
});

test("an agent that fell silent is told as such", async () => {
  const silent = { ...all, nodeRuntimes: storeOf([node("n1", { heartbeat: ago(600) })]) };
  expect((await get("/", silent)).text).toContain("silent for 10m");
  expect((await get("/nodes/n1", silent)).text).toContain("AgentSilent");
});

test("before the stores are filled it answers 503, for what is not there 404", async () => {
  expect((await get("/", undefined)).status).toBe(503);
  for (const path of ["/nodes/n9", "/profiles/x", "/tenants/none", "/nodes/%00"])
    expect((await get(path, all)).status, path).toBe(404);
});

describe("Of ten thousand nodes", () => {
  const many: Fleet = {
    ...all,
    nodeRuntimes: storeOf(
      Array.from({ length: 10_000 }, (_, index) => node(`node-${String(index).padStart(5, "0")}`)),
    ),
  };
  test("one page is shown, with the way to the others", async () => {
    const { text } = await get("/?page=1", many);
    expect(text.match(/<tr>/g)?.length).toBeLessThan(pageSize + 10);
    expect(text).toContain("node-00200");
    expect(text).not.toContain("node-00199");
    expect(text).toContain("Page 2 of 50, 10000 in all");
  });
  test("a search finds one, and whatever is asked is bounded", async () => {
    const { text } = await get("/?q=node-07777", many);
    expect(text.match(/href="\/nodes\//g)?.length).toBe(1);
    for (const query of ["page=-1", "page=1e99", "page=99999", "q[]=1", `q=${"x".repeat(5000)}`])
      expect((await get(`/?${query}`, many)).status, query).toBe(200);
  });
});
