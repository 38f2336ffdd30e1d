import { create } from "@bufbuild/protobuf";
import { ContainerConfigSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { expect, test } from "vitest";
import { created, newContainer, type Visible } from "../../container/state.ts";
import { containerStatusMessage } from "./messages.ts";

const container = (image: { image: string; userSpecifiedImage?: string }): Visible =>
  created(
    newContainer({
      ...{ id: "c", podId: "p", createdAt: 1n, imageId: "sha256:1", logPath: "", stopSignal: 15 },
      config: create(ContainerConfigSchema, { metadata: { name: "c" }, image }),
    }),
    {
      ...{ handlerState: {}, user: { uid: 0, gid: 0, groups: [] }, imageMounts: [], resources: {} },
      process: { user: { uid: 0, gid: 0 }, args: ["x"], env: [], cwd: "/" },
    },
  ) as Visible;

/* Kubernetes' client takes no status without image.image. */
test.each([
  [{ image: "r.example/a@sha256:1" }, "r.example/a@sha256:1"],
  [{ image: "sha256:1", userSpecifiedImage: "r.example/a:1" }, "r.example/a:1"],
  [{ image: "" }, "sha256:1"],
])("a container of %j, whose image has no tag or has gone, names its image", (image, named) => {
  expect(containerStatusMessage(container(image), { get: () => undefined }).image?.image).toBe(named);
});
