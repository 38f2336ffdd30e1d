import { create } from "@bufbuild/protobuf";
import {
  FilesystemUsageSchema,
  ImageFsInfoResponseSchema,
  ImageSchema,
  RuntimeHandlerSchema,
  VersionResponseSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { expect, test } from "vitest";
import { mergeFsInfo, mergeHandlers, mergeImages, mergeVersion } from "./merge.ts";

const image = (id: string, ...repoTags: string[]) => create(ImageSchema, { id, repoTags });
const handler = (name: string, userNamespaces = false) =>
  create(RuntimeHandlerSchema, { name, features: { userNamespaces } });
const disk = (mountpoint: string, bytes: bigint) =>
  create(ImageFsInfoResponseSchema, {
    imageFilesystems: [create(FilesystemUsageSchema, { fsId: { mountpoint }, usedBytes: { value: bytes } })],
  });

test("An image that both have is listed once, with the names of both", () => {
  const merged = mergeImages([image("a", "x:1")], [image("a", "x:1", "y:1"), image("b", "z:1")]);
  expect(merged.map(({ id, repoTags }) => [id, repoTags])).toEqual([
    ["a", ["x:1", "y:1"]],
    ["b", ["z:1"]],
  ]);
});

test("Of two handlers with one name ours is shown, of the default one the engine's", () => {
  const merged = mergeHandlers(
    [handler(""), handler("runc", true)],
    [handler("", true), handler("runc"), handler("kata")],
  );
  expect(merged.map(({ name, features }) => [name, features?.userNamespaces])).toEqual([
    ["", true],
    ["runc", true],
    ["kata", false],
  ]);
});

test("Two engines on one disk are one file system, on two disks two", () => {
  const one = mergeFsInfo(disk("/a", 1n), disk("/b", 2n), true);
  expect(one.imageFilesystems.map(({ usedBytes }) => usedBytes?.value)).toEqual([3n]);
  const two = mergeFsInfo(disk("/a", 1n), disk("/b", 2n), false);
  expect(two.imageFilesystems.map(({ fsId }) => fsId?.mountpoint)).toEqual(["/a", "/b"]);
});

test("The version names both", () => {
  const own = create(VersionResponseSchema, { runtimeName: "bulkhead", runtimeVersion: "0.1.0" });
  const engine = create(VersionResponseSchema, {
    runtimeName: "containerd",
    runtimeVersion: "v2.4.2+unknown",
  });
  expect(mergeVersion(own, engine)).toMatchObject({
    runtimeName: "bulkhead",
    runtimeVersion: "0.1.0+containerd.2.4.2.unknown",
  });
});
