import { create } from "@bufbuild/protobuf";
import { StatusResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import type { Runtime, RuntimeMethods } from "../runtime.ts";

/** Status: conditions, handlers with their features ("" is the default one), and verbosely what is in force. */
export const status =
  (runtime: Runtime): RuntimeMethods["status"] =>
  async (request) => {
    const notReady = await runtime.network.notReady();
    const handlers = runtime.handlers.list();
    const problems = runtime.handlers.problems();
    const noDefault = !runtime.handlers.has("");
    return create(StatusResponseSchema, {
      status: {
        conditions: [
          {
            type: "RuntimeReady",
            status: handlers.length > 0,
            reason: handlers.length > 0 ? "" : "NoHandler",
            message: handlers.length > 0 ? "" : `no handler is loaded: ${Object.values(problems).join("; ")}`,
          },
          {
            type: "NetworkReady",
            status: notReady === undefined,
            reason: notReady === undefined ? "" : "NetworkPluginNotReady",
            message: notReady ?? "",
          },
        ],
      },
      runtimeHandlers: handlers.map(({ name, handler }) => ({
        name,
        features: {
          recursiveReadOnlyMounts: handler.features().recursiveReadOnlyMounts,
          userNamespaces: handler.features().userNamespaces && runtime.noUserNamespaces === undefined,
        },
      })),
      features: { supplementalGroupsPolicy: true, userNamespacesHostNetwork: false, mountOptions: true },
      info: request.verbose
        ? {
            config: JSON.stringify(runtime.config.verbose()),
            // An object: crictl shows any other JSON as text in quotation marks.
            handlers: JSON.stringify(
              Object.fromEntries(
                handlers.filter(({ name }) => name !== "").map(({ name, config }) => [name, config]),
              ),
            ),
            handlerProblems: JSON.stringify(
              noDefault ? { ...problems, "": "the default handler is not loaded" } : problems,
            ),
            host: JSON.stringify(runtime.host),
          }
        : {},
    });
  };
