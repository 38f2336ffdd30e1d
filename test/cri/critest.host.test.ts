import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { ensureTestImages } from "../images/build.ts";
import { startRegistry } from "../images/registry.ts";
import { inCache, tool } from "../tools/cache.ts";
import { outcome } from "../tools/run.ts";
import { createDaemon, remains } from "./daemon.ts";

type Report = {
  SpecReports: { State: string; LeafNodeText: string; ContainerHierarchyTexts?: string[] | null }[];
}[];

test("critest passes against the daemon alone, and leaves nothing behind", { timeout: 600_000 }, async () => {
  const scratch = await mkdtemp(join(tmpdir(), "bh-critest-"));
  await using stack = new AsyncDisposableStack();
  stack.defer(() => rm(scratch, { recursive: true, force: true }));
  const registry = stack.use(await startRegistry({ dir: inCache("cri-registry") }));
  await ensureTestImages(registry.host);
  const daemon = stack.use(await createDaemon({ registry: registry.host, subnet: 95 }));
  await daemon.start();
  const report = join(scratch, "report.json");
  await outcome([
    tool("critest"),
    ...["--runtime-endpoint", `unix://${daemon.socket}`, "--image-endpoint", `unix://${daemon.socket}`],
    ...["--ginkgo.no-color", `--ginkgo.json-report=${report}`],
    // Its digest is that of an image that nobody can make again.
    "--ginkgo.skip=public image with digest",
  ]);
  const specs = (JSON.parse(await readFile(report, "utf8")) as Report).flatMap((suite) => suite.SpecReports);
  const failed = specs.filter(({ State }) => State !== "passed" && State !== "skipped");
  expect(
    failed.map((each) => [...(each.ContainerHierarchyTexts ?? []), each.LeafNodeText].join(" ")),
  ).toEqual([]);
  expect(specs.filter(({ State }) => State === "passed").length).toBeGreaterThanOrEqual(90);
  expect(await remains(daemon)).toEqual([]);
});
