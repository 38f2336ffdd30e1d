import { lstat, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { Agent, request } from "undici";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Desired } from "../protocol.ts";
import { installerClient } from "../reporter/installer.ts";
import { serveSocket } from "./server.ts";

let directory: string;
let socket: string;
let dispatcher: Agent;
let server: AsyncDisposable;
const taken: Desired[] = [];

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "bh-agent-socket-"));
  socket = join(directory, "installer.sock");
  const report = { instance: "a", version: 1, happenings: [], status: {} };
  server = await serveSocket(
    socket,
    { want: (desired) => taken.push(desired), report: () => report, newer: async () => {} },
    async () => "bulkhead_test 1\n",
    pino({ level: "silent" }),
  );
  dispatcher = new Agent({ connect: { socketPath: socket } });
});
afterAll(async () => {
  await dispatcher.close();
  await server[Symbol.asyncDispose]();
  await rm(directory, { recursive: true });
});
beforeEach(() => {
  taken.length = 0;
});

const send = async (body: unknown, path = "/v1/desired", type = "application/json") => {
  const answer = await request(`http://installer${path}`, {
    dispatcher,
    method: "POST",
    headers: { "content-type": type },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
  const text = await answer.body.text();
  return { status: answer.statusCode, message: text && (JSON.parse(text) as { message: string }).message };
};

const profile = {
  name: "sandboxed",
  revision: "0123456789",
  handler: { gvisor: { platform: "systrap", network: "sandbox", overlay: "memory", flags: ["--debug"] } },
  artifact: { bundled: true },
  engine: "bulkhead",
  probe: { interval: "60s", assertIsolation: true },
};
const desired = (change: object = {}) => ({ generation: 3, profiles: [{ ...profile, ...change }] });

test("the socket is open to root and to the reporter's group alone", async () => {
  const { mode, uid, gid } = await lstat(socket);
  expect([mode & 0o777, uid, gid]).toEqual([0o660, 0, 64473]);
});

test("the typed desired state is taken", async () => {
  expect(await send(desired())).toEqual({ status: 204, message: "" });
  expect(taken).toEqual([desired()]);
});

describe("The socket refuses, says why and changes nothing:", () => {
  const many = Array.from({ length: 101 }, (_, i) => ({ ...profile, name: `p${i}` }));
  const cases: [title: string, body: unknown, status: number, message: RegExp][] = [
    ["a command beside the state", { ...desired(), command: ["sh"] }, 400, /^command: unknown key$/],
    ["an unknown key in a profile", desired({ exec: "x" }), 400, /^profiles\.0\.exec: unknown key$/],
    [
      "an unknown key in a handler",
      desired({ handler: { runc: { binary: "/bin/sh" } } }),
      400,
      /^profiles\.0\.handler\.runc\.binary: unknown key$/,
    ],
    ["an unknown handler", desired({ handler: { sh: {} } }), 400, /profiles\.0\.handler\.sh: unknown key/],
    [
      "two handlers",
      desired({ handler: { runc: {}, crun: {} } }),
      400,
      /^profiles\.0\.handler: exactly one of runc, crun, gvisor/,
    ],
    ["no handler", desired({ handler: {} }), 400, /^profiles\.0\.handler: exactly one of/],
    ["a name that is a path", desired({ name: "../../etc/cron.d/x" }), 400, /^profiles\.0\.name: .*label/],
    ["a name that begins with a dot", desired({ name: ".." }), 400, /^profiles\.0\.name: /],
    ["a revision that is a path", desired({ revision: "../../../x" }), 400, /^profiles\.0\.revision: /],
    [
      "a flag with a path that climbs",
      desired({ handler: { runc: { flags: ["--log=/run/../etc/passwd"] } } }),
      400,
      /^profiles\.0\.handler\.runc\.flags\.0: .*or \.\./,
    ],
    [
      "a flag that is a command",
      desired({ handler: { runc: { flags: ["--x=$(reboot)"] } } }),
      400,
      /^profiles\.0\.handler\.runc\.flags\.0: must be --flag/,
    ],
    [
      "a flag that is an argument",
      desired({ handler: { runc: { flags: ["delete"] } } }),
      400,
      /flags\.0: must be --flag/,
    ],
    [
      "a line of its own in a flag",
      desired({ handler: { runc: { flags: ["--x=a\nkind: shim"] } } }),
      400,
      /flags\.0: must be --flag/,
    ],
    [
      "a profile that is there twice",
      { generation: 1, profiles: [profile, profile] },
      400,
      /^profiles\.1\.name: "sandboxed" is there twice$/,
    ],
    ["more profiles than a node may have", { generation: 1, profiles: many }, 400, /^profiles: Too big/],
    ["a state without a generation", { profiles: [] }, 400, /^generation: /],
    ["a list", [], 400, /expected object/],
    [
      "an object that changes its prototype",
      '{"generation":1,"profiles":[],"__proto__":{}}',
      400,
      /unknown key/,
    ],
    ["text that is no JSON", "{", 400, /JSON/],
  ];
  test.each(cases)("%s", async (_title, body, status, message) => {
    const answer = await send(body);
    expect(answer.message).toMatch(message);
    expect(answer.status).toBe(status);
    expect(taken).toEqual([]);
  });

  test("a body of another type", async () => {
    expect(await send(desired(), "/v1/desired", "text/plain")).toMatchObject({ status: 400 });
    expect(taken).toEqual([]);
  });

  test("a body of more than 1 MiB", async () => {
    const answer = await send({ ...desired(), filler: "x".repeat(1 << 20) });
    expect(answer).toEqual({ status: 413, message: "Cannot take more than 1024 KiB of desired state" });
    expect(taken).toEqual([]);
  });

  test.each(["/v1/exec", "/v1/report", "/"])("a POST to %s", async (path) => {
    const answer = await send(desired(), path);
    expect(answer.status).toBe(404);
    expect(answer.message).toMatch(/^Cannot POST/);
    expect(taken).toEqual([]);
  });
});

test("the reporter's client passes the installer's refusal on", async () => {
  await using client = installerClient(socket);
  const bad = { ...desired(), command: "x" } as unknown as Desired;
  await expect(client.want(bad, AbortSignal.timeout(30_000))).rejects.toThrow(
    'The installer answered 400: {"message":"command: unknown key"}',
  );
  expect(await client.metrics(AbortSignal.timeout(30_000))).toBe("bulkhead_test 1\n");
});
