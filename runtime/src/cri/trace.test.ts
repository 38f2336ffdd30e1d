import { create, type DescMessage, type MessageInitShape } from "@bufbuild/protobuf";
import {
  CreateContainerRequestSchema,
  PullImageRequestSchema,
  RunPodSandboxRequestSchema,
  StopPodSandboxRequestSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { installTracer, type Tracer } from "@bulkhead/lib/tracing/span.ts";
import { afterEach, expect, test } from "vitest";
import { attributesOf, traced } from "./trace.ts";

afterEach(() => installTracer(undefined));

const about = <D extends DescMessage>(schema: D, request: MessageInitShape<D>) =>
  Object.fromEntries(
    Object.entries(attributesOf(create(schema, request))).filter(([, value]) => value !== undefined),
  );
const pod = { name: "web", namespace: "shop", uid: "u-1", attempt: 0 };

test("a span says which pod, container and image its request is about, and nothing else of it", () => {
  const secret = { labels: { a: "secret" }, annotations: { b: "secret" }, logDirectory: "/secret" };
  const named = { "k8s.pod.name": "web", "k8s.namespace.name": "shop", "k8s.pod.uid": "u-1" };
  expect(
    about(RunPodSandboxRequestSchema, { config: { metadata: pod, ...secret }, runtimeHandler: "gvisor" }),
  ).toEqual({ ...named, "bulkhead.handler": "gvisor" });
  expect(
    about(CreateContainerRequestSchema, {
      podSandboxId: "p1",
      sandboxConfig: { metadata: pod, ...secret },
      config: {
        metadata: { name: "main", attempt: 1 },
        image: { image: "nginx:1" },
        command: ["secret"],
        args: ["secret"],
        envs: [{ key: "TOKEN", value: new TextEncoder().encode("secret") }],
      },
    }),
  ).toEqual({
    ...named,
    "k8s.container.name": "main",
    "container.image.name": "nginx:1",
    "bulkhead.sandbox.id": "p1",
  });
  expect(
    about(PullImageRequestSchema, {
      image: { image: "nginx:1" },
      auth: { username: "secret", password: "secret" },
      sandboxConfig: { metadata: pod },
    }),
  ).toEqual({ ...named, "container.image.name": "nginx:1" });
});

test.each([
  ["StopPodSandbox", undefined, true],
  ["ListPodSandbox", undefined, false],
  ["ListPodSandbox", "00-…", true],
  ["GetContainerEvents", "00-…", false],
])("%s of a caller with traceparent %s: a span %s", async (method, traceparent, expected) => {
  const roots: string[] = [];
  installTracer({
    root: (name: string, _options: object, work: () => Promise<unknown>) => {
      roots.push(name);
      return work();
    },
  } as unknown as Tracer);
  const request = create(StopPodSandboxRequestSchema);
  await traced({ service: "runtime.v1.RuntimeService", method, request, traceparent }, async () => {});
  expect(roots).toEqual(expected ? [`runtime.v1.RuntimeService/${method}`] : []);
});
