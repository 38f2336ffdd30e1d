import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  type Container,
  ContainerSchema,
  ContainerStatusResponseSchema,
  ListContainersResponseSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { expect, test } from "vitest";
import { listSerializer } from "./list-serializer.ts";

const serialize = listSerializer(ListContainersResponseSchema);

const container = (id: string): Container =>
  create(ContainerSchema, {
    id,
    metadata: { name: "c", attempt: 2 },
    createdAt: 1_700_000_000_000_000_000n,
    labels: { a: "1", b: "x".repeat(300) },
  });

test("A list is serialized as protobuf would, each time, with items that were there and new ones", () => {
  const [a, b, c] = [container("a"), container("b"), container("c")];
  for (const containers of [[], [a], [a, b], [c, a, b], [b]]) {
    const message = create(ListContainersResponseSchema, { containers });
    const bytes = serialize(message);
    expect(bytes).toEqual(Buffer.from(toBinary(ListContainersResponseSchema, message)));
    expect(fromBinary(ListContainersResponseSchema, bytes)).toEqual(message);
  }
});

test("Another shape is refused when it is registered", () => {
  expect(() => listSerializer(ContainerStatusResponseSchema)).toThrow("not a list of messages alone");
});
