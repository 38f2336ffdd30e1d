import { create, type DescService } from "@bufbuild/protobuf";
import type { CriServices } from "@bulkhead/lib/cri/client.ts";
import { ImageService, RuntimeService, VersionResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { serveCri } from "../../runtime/src/cri/server.ts";

/** A fake of an engine: it answers Version on the socket with the name that it is given, and refuses all else. */

const [socket = "", runtimeName = ""] = process.argv.slice(2);
const version = () =>
  Promise.resolve(create(VersionResponseSchema, { version: "0.1.0", runtimeName, runtimeVersion: "2.4.2" }));
const nothing = () => Promise.reject(new RuntimeError("unimplemented", "This engine is a fake"));
const methods = (service: DescService) =>
  Object.fromEntries(
    service.methods.map(({ localName }) => [localName, localName === "version" ? version : nothing]),
  );
const services = { runtime: methods(RuntimeService), image: methods(ImageService) };
await serveCri(socket, services as unknown as CriServices, () => undefined);
process.stdout.write("listens\n");
