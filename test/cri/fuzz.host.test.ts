import { mkdtemp, readdir, rm, rmdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  create,
  type DescField,
  type DescMessage,
  type Message,
  type MessageShape,
} from "@bufbuild/protobuf";
import { connectCri } from "@bulkhead/lib/cri/client.ts";
import {
  ContainerConfigSchema,
  ContainerMetadataSchema,
  type CreateContainerRequest,
  CreateContainerRequestSchema,
  ImageSpecSchema,
  PodSandboxConfigSchema,
  PodSandboxMetadataSchema,
  RemovePodSandboxRequestSchema,
  type RunPodSandboxRequest,
  RunPodSandboxRequestSchema,
  RuntimeService,
} from "@bulkhead/lib/gen/cri_pb.js";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ensureTestImages } from "../images/build.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { inCache } from "../tools/cache.ts";
import { createDaemon, type Daemon, remains } from "./daemon.ts";

const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
const seed = Number(process.env.BULKHEAD_FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 31));
const runs = Number(process.env.BULKHEAD_FUZZ_RUNS ?? 15);

const cgroupParent = "/bulkhead-fuzz";
let scratch: string;
let registry: RunningRegistry;
let daemon: Daemon;
let engine: ReturnType<typeof connectCri>;

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "bh-fuzz-"));
  registry = await startRegistry({ dir: inCache("cri-registry") });
  await ensureTestImages(registry.host, ["e2e-test-images/busybox:1.29-2"]);
  daemon = await createDaemon({ registry: registry.host, subnet: 98 });
  await daemon.start();
  await daemon.crictl("pull", busybox);
  engine = connectCri(daemon.socket);
});
afterAll(async () => {
  engine?.[Symbol.dispose]();
  await daemon?.[Symbol.asyncDispose]();
  await registry?.stop();
  await rm(scratch, { recursive: true, force: true });
  // A pod's parent is kubelet's to make and to remove.
  for (const mounted of ["", ...(await readdir("/sys/fs/cgroup"))])
    await rmdir(join("/sys/fs/cgroup", mounted, cgroupParent)).catch(() => {});
});

const nasty = ["", "..", "../../x", "a\0b", "a\nb", "/", "-1", "%s", "☃", "x".repeat(5000), "__proto__"];
const text = fc.oneof(fc.constantFrom(...nasty), fc.string({ maxLength: 20 }));
/** What is made on the node by its name stays below our own directory. */
const place = text.map((each) => join(scratch, each.replaceAll("..", "").replaceAll("\0", "").slice(0, 100)));
const number = fc.oneof(
  fc.constantFrom(0n, 1n, -1n, 2n ** 31n, 2n ** 32n, 2n ** 63n - 1n, -(2n ** 63n)),
  fc.bigInt({ min: -10n, max: 100_000n }),
);

const scalarOf = (field: DescField): fc.Arbitrary<unknown> => {
  if (field.localName === "hostPath" || field.localName === "logDirectory") return place;
  if (field.localName === "cgroupParent") return fc.constantFrom("", cgroupParent, "../../x", "a/../../b");
  if (field.enum) return fc.constantFrom(...field.enum.values.map((value) => value.number), 99);
  if (field.scalar === undefined) return fc.constant(undefined);
  const scalars: Record<number, fc.Arbitrary<unknown>> = {
    1: fc.double({ noNaN: true }),
    3: number,
    4: number.map((value) => (value < 0n ? -(value + 1n) : value)),
    5: fc.integer(),
    8: fc.boolean(),
    9: text,
    12: text.map((each) => new TextEncoder().encode(each)),
    13: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
  };
  return scalars[field.scalar] ?? fc.constant(undefined);
};

/** Any message of the type: every field absent, ordinary or nasty. */
const messageOfType = <T extends DescMessage>(type: T, depth = 0): fc.Arbitrary<MessageShape<T>> => {
  const fields = type.fields.map((field): [string, fc.Arbitrary<unknown>] => {
    const one = (): fc.Arbitrary<unknown> =>
      field.message
        ? depth > 5
          ? fc.constant(undefined)
          : messageOfType(field.message, depth + 1)
        : scalarOf(field);
    switch (field.fieldKind) {
      case "list":
        return [field.localName, fc.array(one(), { maxLength: 2 })];
      case "map":
        return [
          field.localName,
          fc.dictionary(text, field.mapKind === "scalar" ? text : one(), { maxKeys: 2 }),
        ];
      default:
        return [field.localName, one()];
    }
  });
  // Few at a time, or the first bad one hides the others.
  return fc
    .subarray(fields, { maxLength: Math.min(fields.length, depth === 0 ? 6 : 3) })
    .chain((chosen) => fc.record(Object.fromEntries(chosen)))
    .map((values) =>
      (create as (type: DescMessage, init: object) => MessageShape<T>)(
        type,
        Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)),
      ),
    );
};

const refusals = new Set([
  ...["not-found", "invalid-argument", "failed-precondition", "already-exists", "unimplemented"],
  // What the kernel, a plugin or the runtime program says in its own words.
  "unknown",
]);

/** An answer, or a refusal in words: nothing that reads like a defect of ours. */
const answered = async (what: string, asked: Promise<unknown>): Promise<void> => {
  try {
    await asked;
  } catch (error) {
    const said = `${what}: ${error instanceof RuntimeError ? error.code : "?"}: ${messageOf(error)}`;
    expect(refusals.has(error instanceof RuntimeError ? error.code : "?"), said).toBe(true);
    expect(said).not.toMatch(
      /TypeError|ReferenceError|is not a function|of undefined|Cannot read properties|BigInt/,
    );
  }
};

const removeAll = async (): Promise<void> => {
  const { items } = await engine.runtime.listPodSandbox(
    { $typeName: "runtime.v1.ListPodSandboxRequest" },
    AbortSignal.timeout(10_000),
  );
  await Promise.all(
    items.map(({ id }) =>
      engine.runtime.removePodSandbox(
        create(RemovePodSandboxRequestSchema, { podSandboxId: id }),
        AbortSignal.timeout(60_000),
      ),
    ),
  );
};

test(`any request is answered or refused in words, and leaves nothing (seed ${seed})`, async () => {
  const quiet = new Set(["getContainerEvents"]);
  const methods = RuntimeService.methods.filter((method) => !quiet.has(method.localName));
  for (const method of methods)
    for (const request of fc.sample(messageOfType(method.input), { seed, numRuns: 4 })) {
      const send = engine.runtime[method.localName as keyof typeof engine.runtime] as unknown as (
        request: Message,
        signal: AbortSignal,
      ) => Promise<unknown> | AsyncIterable<unknown>;
      const reply = send(request, AbortSignal.timeout(30_000));
      const consumed =
        Symbol.asyncIterator in reply ? Array.fromAsync(reply as AsyncIterable<unknown>) : reply;
      await answered(`${method.name} ${JSON.stringify(request, bigints)}`, consumed as Promise<unknown>);
    }
  await removeAll();
  expect(await remains(daemon)).toEqual([]);
});

test(`any pod and any container that can be made can be removed (seed ${seed})`, {
  timeout: 180_000,
}, async () => {
  const pods = fc.sample(messageOfType(PodSandboxConfigSchema), { seed, numRuns: runs });
  const containers = fc.sample(messageOfType(ContainerConfigSchema), { seed, numRuns: runs });
  let made = 0;
  await inTurns([...pods.entries()], async ([index, some]) => {
    const name = `fuzz-${index}`;
    const config = {
      ...some,
      metadata: create(PodSandboxMetadataSchema, { name, namespace: "fuzz", uid: name }),
    };
    const request = create(RunPodSandboxRequestSchema, { config });
    await answered(JSON.stringify(config, bigints), runPod(request));
  });
  const { podSandboxId } = await engine.runtime.runPodSandbox(
    create(RunPodSandboxRequestSchema, {
      config: { metadata: { name: "home", namespace: "fuzz", uid: "home" }, logDirectory: scratch },
    }),
    AbortSignal.timeout(30_000),
  );
  await inTurns([...containers.entries()], async ([index, some]) => {
    const config = {
      ...some,
      metadata: create(ContainerMetadataSchema, { name: `fuzz-${index}` }),
      image: create(ImageSpecSchema, { image: busybox }),
      // Half of what is made at random has no command, which the image has none of either.
      command: ["sleep", "1000"],
    };
    const request = create(CreateContainerRequestSchema, { podSandboxId, config });
    await answered(
      JSON.stringify(config, bigints),
      createContainer(request).then(() => {
        made++;
      }),
    );
  });
  // Not all of them were refused, or nothing was tried.
  expect(made).toBeGreaterThan(0);
  await removeAll();
  expect(await remains(daemon)).toEqual([]);
});

const bigints = (_key: string, value: unknown): unknown =>
  typeof value === "bigint" ? String(value) : value;
const runPod = (request: RunPodSandboxRequest) =>
  engine.runtime.runPodSandbox(request, AbortSignal.timeout(30_000));
const createContainer = (request: CreateContainerRequest) =>
  engine.runtime.createContainer(request, AbortSignal.timeout(30_000));

/** A few at a time, as kubelet does. */
const inTurns = async <T>(items: T[], each: (item: T) => Promise<void>): Promise<void> => {
  const rest = items[Symbol.iterator]();
  await Promise.all(
    Array.from({ length: 4 }, async () => {
      for (const item of rest) await each(item);
    }),
  );
};
