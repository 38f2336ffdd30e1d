import type { Message } from "@bufbuild/protobuf";
import { type Attributes, type RootOptions, rootSpan } from "@bulkhead/lib/tracing/span.ts";
import { isRoutine } from "./observe.ts";

/** A call, as far as its span needs it. */
export type Called = {
  /** runtime.v1.RuntimeService */
  service: string;
  method: string;
  request: Message;
  /** The caller's W3C traceparent, as it came. */
  traceparent: string | undefined;
};

/**
 * Does a call's work within its span, whose parent is the caller's. What the kubelet asks every second has one only
 * where the caller traces it.
 */
export const traced = (call: Called, work: () => Promise<void>): Promise<void> => {
  const root = spanOf(call);
  return root === undefined ? work() : rootSpan(`${call.service}/${call.method}`, root, work);
};

/** Streams that last as long as their clients are no piece of work. */
const endless = new Set(["GetContainerEvents"]);

const spanOf = ({ service, method, request, traceparent }: Called): RootOptions | undefined =>
  endless.has(method) || (traceparent === undefined && isRoutine(method))
    ? undefined
    : {
        kind: "server",
        parent: traceparent,
        attributes: {
          "rpc.system.name": "grpc",
          "rpc.method": `${service}/${method}`,
          ...attributesOf(request),
        },
      };

/** What a request is about: names and ids, by OpenTelemetry's conventions where they have a name for it. */
export const attributesOf = (request: Message): Attributes => {
  const fields = request as unknown as {
    podSandboxId?: unknown;
    containerId?: unknown;
    runtimeHandler?: unknown;
    image?: { image?: unknown };
    config?: { metadata?: Metadata; image?: { image?: unknown } };
    sandboxConfig?: { metadata?: Metadata };
  };
  const isContainer = fields.sandboxConfig !== undefined;
  return {
    ...podAttributes((isContainer ? fields.sandboxConfig : fields.config)?.metadata),
    "k8s.container.name": text(isContainer ? fields.config?.metadata?.name : undefined),
    "container.id": text(fields.containerId),
    "container.image.name": text(fields.image?.image ?? fields.config?.image?.image),
    "bulkhead.sandbox.id": text(fields.podSandboxId),
    "bulkhead.handler": text(fields.runtimeHandler),
  };
};

type Metadata = { name?: unknown; namespace?: unknown; uid?: unknown };

/** Which pod. */
export const podAttributes = (pod: Metadata | undefined): Attributes => ({
  "k8s.pod.name": text(pod?.name),
  "k8s.namespace.name": text(pod?.namespace),
  "k8s.pod.uid": text(pod?.uid),
});

const text = (value: unknown): string | undefined =>
  typeof value === "string" && value !== "" ? value : undefined;
