import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { BootstrapParamsSchema, BootstrapResultSchema } from "@bulkhead/lib/gen/shim_bootstrap_pb.js";
import { expect, test } from "vitest";
import { bootstrapParams, parseBootstrap } from "./bootstrap.ts";

const bytes = (text: string) => new TextEncoder().encode(text);

test("the binary, the JSON and the plain reply are told apart", () => {
  const binary = toBinary(
    BootstrapResultSchema,
    create(BootstrapResultSchema, { version: 3, address: "unix:///run/s", protocol: "ttrpc" }),
  );
  expect(parseBootstrap(binary)).toEqual({ version: 3, address: "unix:///run/s", protocol: "ttrpc" });
  expect(parseBootstrap(bytes('{"version":2,"address":"unix:///run/s","protocol":"ttrpc"}\n'))).toEqual({
    version: 2,
    address: "unix:///run/s",
    protocol: "ttrpc",
  });
  expect(parseBootstrap(bytes("unix:///run/containerd/s/0123\n"))).toEqual({
    version: 2,
    address: "unix:///run/containerd/s/0123",
    protocol: "ttrpc",
  });
});

test("a shim that speaks gRPC, or answers no address, is refused with what it said", () => {
  expect(() => parseBootstrap(bytes('{"version":3,"address":"unix:///run/s","protocol":"grpc"}'))).toThrow(
    "speaks grpc",
  );
  expect(() => parseBootstrap(bytes("panic: no such thing"))).toThrow("panic: no such thing");
  expect(() => parseBootstrap(bytes(""))).toThrow("no address");
});

test("BootstrapParams name the sandbox, the namespace and where sockets go", () => {
  const params = fromBinary(
    BootstrapParamsSchema,
    bootstrapParams({ id: "pod", namespace: "n", ttrpcAddress: "/e", grpcAddress: "/g", socketDir: "/s" }),
  );
  expect(params).toMatchObject({
    instanceId: "pod",
    namespace: "n",
    containerdTtrpcAddress: "/e",
    containerdGrpcAddress: "/g",
    socketDir: "/s",
  });
});
