import { once } from "node:events";
import { createServer } from "node:net";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** A TCP port of `host` that nobody listens on now. Another may take it before the caller does. */
export const freePort = async (host = "127.0.0.1"): Promise<number> => {
  const server = createServer().listen(0, host);
  await once(server, "listening");
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string")
    throw new RuntimeError("internal", "Cannot find a free port");
  return address.port;
};
