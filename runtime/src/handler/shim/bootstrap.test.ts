import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { AnySchema } from "@bufbuild/protobuf/wkt";
import { BootstrapParamsSchema, BootstrapResultSchema } from "@bulkhead/lib/gen/shim_bootstrap_pb.js";
import { expect, test } from "vitest";
import { bootstrapInput, launchForms, parseBootstrap } from "./bootstrap.ts";
import { createOptions } from "./bundle.ts";

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

test("a shim that speaks neither ttrpc nor gRPC, or answers no address, is refused with what it said", () => {
  const reply = (protocol: string) =>
    parseBootstrap(bytes(`{"version":3,"address":"unix:///run/s","protocol":"${protocol}"}`));
  expect(reply("grpc")).toEqual({ version: 3, address: "unix:///run/s", protocol: "grpc" });
  expect(() => reply("soap")).toThrow('speaks "soap"');
  expect(() => parseBootstrap(bytes("panic: no such thing"))).toThrow("panic: no such thing");
  expect(() => parseBootstrap(bytes(""))).toThrow("no address");
});

const params = {
  id: "pod",
  namespace: "n",
  ttrpcAddress: "/e",
  grpcAddress: "/g",
  publisher: "/p",
  socketDir: "/s",
  options: createOptions({ optionsTypeUrl: "containerd.runc.v1.Options" }),
};

test("BootstrapParams name the sandbox, where sockets go, and the runtime's options, in binary and in JSON", () => {
  const said = {
    instanceId: "pod",
    namespace: "n",
    containerdTtrpcAddress: "/e",
    containerdGrpcAddress: "/g",
    containerdBinary: "/p",
    socketDir: "/s",
  };
  const binary = fromBinary(BootstrapParamsSchema, bootstrapInput("bootstrap", params) as Uint8Array);
  expect(binary).toMatchObject(said);
  expect(binary.extensions.map(({ value }) => value?.typeUrl)).toEqual(["containerd.runc.v1.Options"]);
  const json = JSON.parse(Buffer.from(bootstrapInput("bootstrap-json", params) as Uint8Array).toString());
  expect(json).toMatchObject({
    instanceId: "pod",
    extensions: [{ value: { "@type": "containerd.runc.v1.Options" } }],
  });
});

test("older shims get the options alone, or nothing; the form that was taken last is offered first", () => {
  expect(bootstrapInput("options", params)).toEqual(
    toBinary(AnySchema, params.options as NonNullable<typeof params.options>),
  );
  expect(bootstrapInput("empty", params)).toBeUndefined();
  expect(launchForms(undefined, true)).toEqual(["bootstrap", "options", "empty", "bootstrap-json"]);
  expect(launchForms("empty", false)).toEqual(["empty", "bootstrap", "bootstrap-json"]);
});

test.each(["unix://@/containerd-shim/abc.sock", "\0/containerd-shim/abc.sock", "vsock://2:1024"])(
  "a shim that listens where its neighbours could reach it is refused: %j (CVE-2020-15257)",
  (address) => {
    expect(() => parseBootstrap(Buffer.from(address))).toThrow("which is no address");
    const reply = JSON.stringify({ version: 3, address, protocol: "ttrpc" });
    expect(() => parseBootstrap(Buffer.from(reply))).toThrow("which is no address");
  },
);
