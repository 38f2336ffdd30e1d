import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { type CriServices, connectCri } from "@bulkhead/lib/cri/client.ts";
import { ImageService, RuntimeService, VersionResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { expect, onTestFinished, test, vi } from "vitest";
import { serveCri } from "./server.ts";

type Version = CriServices["runtime"]["version"];

/** A server of `version` alone, and its client. */
const served = async (version: Version) => {
  const dir = mkdtempSync(join(tmpdir(), "bh-cri-"));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  const missing = async () => {
    throw new Error("not served");
  };
  const services = Object.fromEntries(
    Object.entries({ runtime: RuntimeService, image: ImageService }).map(([name, { methods }]) => [
      name,
      Object.fromEntries(methods.map(({ localName }) => [localName, missing])),
    ]),
  ) as unknown as CriServices;
  services.runtime.version = version;
  const told = vi.fn();
  const server = await serveCri(join(dir, "cri.sock"), services, told);
  onTestFinished(() => server.close(AbortSignal.abort()));
  const client = connectCri(join(dir, "cri.sock"));
  onTestFinished(() => client[Symbol.dispose]());
  return { client, told };
};

test("a caller who leaves aborts the work of the call", async () => {
  const asked = Promise.withResolvers<AbortSignal>();
  const { client, told } = await served((_, signal) => {
    asked.resolve(signal);
    return new Promise((_resolve, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  });
  const leave = new AbortController();
  const call = client.runtime.version({}, leave.signal);
  const signal = await asked.promise;
  leave.abort();
  await expect(call).rejects.toMatchObject({ code: "cancelled" });
  await vi.waitFor(() => expect(told).toHaveBeenCalled(), 20_000);
  expect(signal.aborted).toBe(true);
  expect(told.mock.lastCall?.[0]).toMatchObject({ method: "Version", code: 1 });
});

test("a call that was answered is over, not aborted", async () => {
  const signals: AbortSignal[] = [];
  const { client, told } = await served(async (_, signal) => {
    signals.push(signal);
    return create(VersionResponseSchema, { runtimeName: "bulkhead" });
  });
  const ask = () => client.runtime.version({}, AbortSignal.timeout(10_000));
  expect((await ask()).runtimeName).toBe("bulkhead");
  // By the second answer the first call's stream was closed.
  await ask();
  expect(signals[0]?.aborted).toBe(false);
  expect(told.mock.calls.map(([{ code }]) => code)).toEqual([0, 0]);
});
