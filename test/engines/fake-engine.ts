import { toBinary } from "@bufbuild/protobuf";
import { VersionResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { Server, ServerCredentials } from "@grpc/grpc-js";

/** A fake of an engine: it answers Version on the socket with the name that it is given, and nothing else. */

const [socket = "", runtimeName = ""] = process.argv.slice(2);
const server = new Server();
server.addService(
  {
    version: {
      path: "/runtime.v1.RuntimeService/Version",
      requestStream: false,
      responseStream: false,
      requestSerialize: (bytes: Buffer) => bytes,
      requestDeserialize: (bytes) => bytes,
      responseSerialize: (bytes: Buffer) => bytes,
      responseDeserialize: (bytes) => bytes,
    },
  },
  {
    version: (_: unknown, answer: (error: null, bytes: Buffer) => void) =>
      answer(
        null,
        Buffer.from(
          toBinary(VersionResponseSchema, {
            $typeName: "runtime.v1.VersionResponse",
            version: "0.1.0",
            runtimeName,
            runtimeVersion: "2.4.2",
            runtimeApiVersion: "v1",
          }),
        ),
      ),
  },
);
server.bindAsync(`unix://${socket}`, ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
  process.stdout.write("listens\n");
});
