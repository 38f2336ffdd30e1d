import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { type FaultyProxy, startProxy } from "@bulkhead/test/apiserver/proxy.ts";
import { type ApiServer, startApiServer } from "@bulkhead/test/apiserver/start.ts";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { apiStatusOf, type Client, createClient } from "./client.ts";
import { kubeconfigFile } from "./config.ts";
import { createRecorder, events } from "./events.ts";
import { leases, runAsLeader } from "./lease.ts";
import type { KubeObject, Resource } from "./object.ts";
import { createReflector } from "./reflector.ts";

type ConfigMap = KubeObject & { data?: Record<string, string> };
const configMaps: Resource<ConfigMap> = {
  apiVersion: "v1",
  kind: "ConfigMap",
  plural: "configmaps",
  namespaced: true,
};
const namespace = "default";

let server: ApiServer;
let proxy: FaultyProxy;
let client: Client;
let throughProxy: Client;

beforeAll(async () => {
  server = await startApiServer();
  const config = await kubeconfigFile(server.kubeconfig);
  client = createClient({ config });
  proxy = await startProxy(config);
  throughProxy = createClient({ config: proxy.config, timeoutMs: 1_000 });
});
afterAll(async () => {
  await throughProxy?.close();
  await proxy?.[Symbol.asyncDispose]();
  await client?.close();
  await server?.[Symbol.asyncDispose]();
});
afterEach(() => {
  proxy.fault = () => undefined;
  proxy.requests.length = 0;
});

const configMap = (name: string, data: Record<string, string> = {}): ConfigMap => ({
  metadata: { name, namespace, labels: { test: "true" } },
  data,
});

const until = async (what: string, holds: () => boolean | Promise<boolean>, ms = 20_000) => {
  const deadline = Date.now() + ms;
  while (!(await holds())) {
    if (Date.now() > deadline) throw new Error(`not within ${ms} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

describe("The client", () => {
  test("maps the API server's refusals to codes and keeps its words", async () => {
    await expect(client.get(configMaps, "none", { namespace })).rejects.toMatchObject({
      code: "not-found",
      message: 'Cannot get ConfigMap "default/none": configmaps "none" not found',
    });
    await client.create(configMaps, configMap("twice"));
    await expect(client.create(configMaps, configMap("twice"))).rejects.toMatchObject({
      code: "already-exists",
    });
    await expect(client.create(configMaps, configMap("Not A Name"))).rejects.toMatchObject({
      code: "invalid-argument",
    });
    const stale = await client.get(configMaps, "twice", { namespace });
    await client.patch(configMaps, "twice", { data: { a: "1" } }, { namespace });
    await expect(client.replace(configMaps, stale)).rejects.toMatchObject({ code: "failed-precondition" });
    await expect(
      client.delete(configMaps, "twice", { namespace, uid: "00000000-0000-0000-0000-000000000000" }),
    ).rejects.toMatchObject({ code: "failed-precondition" });
    await client.delete(configMaps, "twice", { namespace });
  });

  test("applies its own fields, refuses another manager's, and takes them over with force", async () => {
    const apply = (fieldManager: string, value: string, force = false) =>
      client.apply<ConfigMap>(
        configMaps,
        { metadata: { name: "applied", namespace }, data: { key: value } },
        { fieldManager, force },
      );
    await apply("one", "1");
    await expect(apply("two", "2")).rejects.toMatchObject({ code: "failed-precondition" });
    expect((await apply("two", "2", true)).data).toEqual({ key: "2" });
    await client.delete(configMaps, "applied", { namespace });
  });

  test("waits as long as Retry-After says and tries again", async () => {
    let answers = 0;
    proxy.fault = () =>
      ++answers <= 2 ? { do: "answer", status: 429, headers: { "retry-after": "1" } } : undefined;
    const started = Date.now();
    await throughProxy.list(configMaps, { namespace });
    expect(Date.now() - started).toBeGreaterThan(1900);
    expect(answers).toBe(3);
  });

  test.each([
    ["0", [200, 400, 800, 1600]],
    ["-5", [200, 400, 800, 1600]],
    ["99999999999", [30_000, 30_000, 30_000, 30_000]],
  ])("waits within bounds whatever Retry-After says: %s", async (retryAfter, waits) => {
    proxy.fault = () => ({ do: "answer", status: 429, headers: { "retry-after": retryAfter } });
    const slept: number[] = [];
    const patient = createClient({
      config: proxy.config,
      clock: { now: () => Date.now(), sleep: async (ms) => void slept.push(ms) },
    });
    await expect(patient.list(configMaps)).rejects.toMatchObject({ code: "resource-exhausted" });
    await patient.close();
    expect(slept).toEqual(waits);
  });

  test("sends no write that its guard refuses, and reads all the same", async () => {
    const guarded = createClient({
      config: proxy.config,
      guard: () => {
        throw new RuntimeError("failed-precondition", "not now");
      },
    });
    await expect(guarded.create(configMaps, configMap("refused"))).rejects.toThrow("not now");
    await guarded.list(configMaps);
    await guarded.close();
    expect(proxy.requests.map((line) => line.split(" ")[0])).toEqual(["GET"]);
  });

  test("does not repeat a failure that the server did not ask to repeat", async () => {
    proxy.fault = () => ({ do: "answer", status: 500 });
    const failed = await throughProxy.list(configMaps).catch((error: unknown) => error);
    expect(failed).toMatchObject({ code: "internal" });
    expect(apiStatusOf(failed)).toMatchObject({ httpStatus: 500 });
    expect(proxy.requests).toHaveLength(1);
  });

  test("gives up on a server that does not answer", async () => {
    proxy.fault = () => ({ do: "hang" });
    await expect(throughProxy.list(configMaps)).rejects.toMatchObject({ code: "deadline-exceeded" });
  });

  test("takes no HTTP/2 where it is offered, for requests and for watches", async () => {
    const read = (file: string) => readFile(join(server.directory, "certificates", file), "utf8");
    const certificate = { cert: await read("apiserver.crt"), key: await read("apiserver.key") };
    await using way = await startProxy(await kubeconfigFile(server.kubeconfig), certificate);
    const through = createClient({ config: way.config });
    const { resourceVersion } = await through.list(configMaps, { namespace });
    const { signal } = new AbortController();
    for await (const _ of through.watch(configMaps, { resourceVersion, signal, timeoutSeconds: 1 }));
    await through.close();
  });

  test("keeps a request's deadline while there is no connection either", async () => {
    const silent = createServer(() => {}).listen(0, "127.0.0.1");
    await once(silent, "listening");
    const { port } = silent.address() as AddressInfo;
    const none = { server: `https://127.0.0.1:${port}`, tls: {}, headers: async () => ({}) };
    const waiting = createClient({ config: none });
    const started = Date.now();
    const signal = AbortSignal.timeout(500);
    await expect(waiting.list(configMaps, { signal })).rejects.toMatchObject({ name: "TimeoutError" });
    expect(Date.now() - started).toBeLessThan(3_000);
    await waiting.close();
    silent.close();
  });

  test.each([{ do: "cut" } as const, { do: "truncate", bytes: 100 } as const])(
    "calls an answer that ended early unavailable: $do",
    async (fault) => {
      proxy.fault = () => fault;
      await expect(throughProxy.list(configMaps)).rejects.toMatchObject({ code: "unavailable" });
    },
  );

  test("stops waiting when its signal aborts", async () => {
    proxy.fault = () => ({ do: "hang" });
    const stop = new AbortController();
    const listing = throughProxy.list(configMaps, { signal: stop.signal });
    const reason = new Error("enough");
    setTimeout(() => stop.abort(reason), 100);
    await expect(listing).rejects.toBe(reason);
  });
});

describe("A reflector", () => {
  const follow = (options: { client?: Client; idleMs?: number } = {}) => {
    const stop = new AbortController();
    const reflector = createReflector({
      client: options.client ?? client,
      resource: configMaps,
      namespace,
      labelSelector: "test=true",
      pageSize: 2,
      random: () => 0,
      ...(options.idleMs ? { idleMs: options.idleMs } : {}),
    });
    const seen: string[] = [];
    reflector.on((change) => seen.push(`${change.type} ${change.object.metadata.name}`));
    const running = reflector.run(stop.signal);
    return {
      ...reflector,
      store: reflector.store,
      seen,
      [Symbol.asyncDispose]: async () => {
        stop.abort();
        await running;
      },
    };
  };
  const clear = async () => {
    for (const { metadata } of (await client.list(configMaps, { namespace, labelSelector: "test=true" }))
      .items) {
      await client.delete(configMaps, metadata.name, { namespace });
    }
  };
  afterEach(clear);

  test("lists in pages, then follows what is added, changed and deleted", async () => {
    for (const name of ["a", "b", "c", "d", "e"]) await client.create(configMaps, configMap(name));
    await using reflector = follow({ client: throughProxy });
    await reflector.synced;
    expect(reflector.store.size).toBe(5);
    expect(proxy.requests.filter((line) => line.includes("limit=2"))).toHaveLength(3);
    await client.create(configMaps, configMap("f"));
    await client.patch(configMaps, "f", { data: { x: "1" } }, { namespace });
    await client.delete(configMaps, "f", { namespace });
    await until("the deletion is seen", () => reflector.seen.includes("deleted f"));
    expect(reflector.seen.slice(5)).toEqual(["added f", "updated f", "deleted f"]);
    expect([...reflector.store.list()].every((o) => o.metadata.managedFields === undefined)).toBe(true);
  });

  test("lists anew after 410 and reveals what it missed", async () => {
    await client.create(configMaps, configMap("gone"));
    proxy.fault = (_, path) => (path.includes("watch=1") ? { do: "expire" } : undefined);
    await using reflector = follow({ client: throughProxy });
    await reflector.synced;
    await client.delete(configMaps, "gone", { namespace });
    await until("the deletion is seen", () => reflector.seen.includes("deleted gone"));
    expect(proxy.requests.filter((line) => line.includes("limit=2")).length).toBeGreaterThan(1);
  });

  test("takes a watch that carried nothing for one that ended, not for a failure", async () => {
    const { resourceVersion } = await client.list(configMaps, { namespace });
    const { signal } = new AbortController();
    const events: unknown[] = [];
    for await (const event of client.watch(configMaps, { namespace, resourceVersion, signal, idleMs: 700 }))
      events.push(event);
    expect(events).toEqual([]);
  });

  test("sees by itself that a connection is dead and watches on from where it was", async () => {
    let freeze = true;
    proxy.fault = (_, path) => {
      if (!path.includes("watch=1") || !freeze) return undefined;
      freeze = false;
      return { do: "freeze" };
    };
    await using reflector = follow({ client: throughProxy, idleMs: 1_500 });
    await reflector.synced;
    await until("the watch is frozen", () => proxy.open() === 1);
    await client.create(configMaps, configMap("unseen"));
    await until("the object is seen", () => reflector.seen.includes("added unseen"));
    expect(proxy.requests.filter((line) => line.includes("limit=2"))).toHaveLength(1);
    expect(proxy.open()).toBe(0);
  });

  test.each([
    { do: "answer", status: 500 } as const,
    { do: "answer", status: 429, headers: { "retry-after": "1" } } as const,
    { do: "cut" } as const,
    { do: "truncate", bytes: 40 } as const,
  ])("survives a server that fails its list and its watch: %o", async (fault) => {
    let left = 3;
    proxy.fault = () => (left-- > 0 ? fault : undefined);
    await using reflector = follow({ client: throughProxy });
    await client.create(configMaps, configMap("late"));
    await until("the object is seen", () => reflector.seen.includes("added late"));
  });

  test("survives the API server's own restart", async () => {
    await using reflector = follow();
    await reflector.synced;
    await server.stop();
    await server.start();
    await client.create(configMaps, configMap("after"));
    await until("the object is seen", () => reflector.seen.includes("added after"), 40_000);
  });
});

describe("A Lease", () => {
  const quick = { leaseDurationMs: 3_000, renewDeadlineMs: 2_000, retryPeriodMs: 200 };
  const contender = (identity: string, name: string, through: Client = client) => {
    const stop = new AbortController();
    const state = { leads: false, led: 0 };
    const done = runAsLeader(
      { client: through, namespace, name, identity, ...quick },
      async (signal) => {
        state.leads = true;
        state.led++;
        await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
        state.leads = false;
      },
      stop.signal,
    );
    done.catch(() => {});
    return { state, done, stop: () => stop.abort() };
  };

  test("is held by one; a standby takes over at once when it is released", async () => {
    const one = contender("one", "released");
    await until("one leads", () => one.state.leads);
    const two = contender("two", "released");
    await new Promise((resolve) => setTimeout(resolve, 4_000));
    expect(two.state.leads).toBe(false);
    one.stop();
    await one.done;
    const released = Date.now();
    await until("two leads", () => two.state.leads);
    expect(Date.now() - released).toBeLessThan(1_500);
    expect((await client.get(leases, "released", { namespace })).spec).toMatchObject({
      holderIdentity: "two",
      leaseTransitions: 1,
    });
    two.stop();
    await two.done;
  });

  test("that cannot be renewed stops its leader before another begins", async () => {
    const one = contender("one", "lost", throughProxy);
    await until("one leads", () => one.state.leads);
    const two = contender("two", "lost");
    let both = false;
    const watcher = setInterval(() => {
      both ||= one.state.leads && two.state.leads;
    }, 5);
    proxy.fault = () => ({ do: "hang" });
    await expect(one.done).rejects.toThrow('Cannot renew lease "default/lost"');
    await until("two leads", () => two.state.leads);
    clearInterval(watcher);
    expect(both).toBe(false);
    two.stop();
    await two.done;
  });
});

test("Events of the same kind become one with a count; different ones stay apart", async () => {
  const recorder = createRecorder({ client, controller: "bulkhead.dev/test", instance: "test-0" });
  const regarding = { apiVersion: "v1", kind: "Node", name: "node-x", uid: "u" };
  const event = { regarding, type: "Warning", reason: "CanaryFailed", action: "Probe", note: "no" } as const;
  for (let time = 0; time < 3; time++) recorder.emit(event);
  recorder.emit({ ...event, note: "another" });
  await recorder.flush();
  const written = (await client.list(events, { namespace })).items.filter(
    (e) => e.regarding?.name === "node-x",
  );
  expect(written.map((e) => [e.note, e.series?.count]).sort()).toEqual([
    ["another", undefined],
    ["no", 3],
  ]);
});
