import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { DescMessage } from "@bufbuild/protobuf";
import {
  CDIDeviceSchema,
  ContainerConfigSchema,
  DeviceSchema,
  ImageService,
  LinuxContainerConfigSchema,
  LinuxContainerResourcesSchema,
  LinuxContainerSecurityContextSchema,
  LinuxPodSandboxConfigSchema,
  LinuxSandboxSecurityContextSchema,
  MountSchema,
  NamespaceOptionSchema,
  PodSandboxConfigSchema,
  RuntimeService,
  UserNamespaceSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { describe, expect, test } from "vitest";

const text = readFileSync(join(import.meta.dirname, "../../../docs/cri.md"), "utf8");
const sections = new Map(
  text.split(/^##+ /m).map((section) => [section.slice(0, section.indexOf("\n")).trim(), section]),
);

describe("docs/cri.md", () => {
  test("names every call of CRI v1", () => {
    const calls = [...RuntimeService.methods, ...ImageService.methods].map(({ name }) => name);
    expect(calls).toHaveLength(43);
    expect(calls.filter((name) => !sections.get("Calls (43)")?.includes(`\`${name}\``))).toEqual([]);
  });

  test.each<DescMessage>([
    PodSandboxConfigSchema,
    LinuxPodSandboxConfigSchema,
    LinuxSandboxSecurityContextSchema,
    NamespaceOptionSchema,
    UserNamespaceSchema,
    ContainerConfigSchema,
    MountSchema,
    DeviceSchema,
    CDIDeviceSchema,
    LinuxContainerConfigSchema,
    LinuxContainerResourcesSchema,
    LinuxContainerSecurityContextSchema,
  ])("says of each field of $name what is done with it", ({ name, fields }) => {
    const section = sections.get(name) ?? "";
    expect(
      fields.filter((field) => !section.includes(`\`${field.name}\``)).map((field) => field.name),
    ).toEqual([]);
  });
});
