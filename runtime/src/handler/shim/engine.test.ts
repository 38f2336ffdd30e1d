import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client, credentials, type ServiceError, status } from "@grpc/grpc-js";
import { expect, onTestFinished, test } from "vitest";
import { serveNoEngine } from "./engine.ts";

test("where shims look for containerd every call is answered at once: unimplemented", async () => {
  const directory = await mkdtemp(join(tmpdir(), "bh-engine-"));
  onTestFinished(() => rm(directory, { recursive: true }));
  const path = join(directory, "s/none.sock");
  const ask = async (): Promise<ServiceError | null> => {
    const client = new Client(`unix:${path}`, credentials.createInsecure());
    const identity = (bytes: Buffer) => bytes;
    const error = await new Promise<ServiceError | null>((resolve) =>
      client.makeUnaryRequest(
        "/containerd.services.containers.v1.Containers/Get",
        identity,
        identity,
        Buffer.alloc(100_000),
        { deadline: Date.now() + 5000 },
        resolve,
      ),
    );
    client.close();
    return error;
  };
  {
    await using _engine = await serveNoEngine(path);
    expect(await ask()).toMatchObject({ code: status.UNIMPLEMENTED, details: "Bulkhead is no containerd" });
    expect(await ask()).toMatchObject({ code: status.UNIMPLEMENTED });
  }
  expect(existsSync(path)).toBe(false);
  // Another daemon after one that was killed.
  await using _again = await serveNoEngine(path);
  expect(await ask()).toMatchObject({ code: status.UNIMPLEMENTED });
});
