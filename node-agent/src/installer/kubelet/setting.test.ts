import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { viewOf } from "../facts.ts";
import { type Host, realIn, resolveIn } from "../host.ts";
import { byWalk, findSetting, type KubeletView, pointAt } from "./setting.ts";

const ours = "unix:///run/bulkhead/cri.sock";
const hosts = join(import.meta.dirname, "../../../test-data/hosts");

/** A host whose files are a tree of test-data; nothing is run on it. */
const tree = (name: string): Host => {
  const root = join(hosts, name);
  const refuse = () => Promise.reject(new Error("nothing runs here"));
  return {
    at: (path) => resolveIn(root, path),
    real: (path) => realIn(root, path),
    run: refuse,
    fetch: refuse,
    serveLayout: refuse,
  };
};

const edited = (view: KubeletView): string[] =>
  pointAt(view, ours).map(({ path, after }) => `${path}\n${after}`);

describe("the endpoint in force is found, and that alone is changed", () => {
  test("kubeadm: a flag in kubeadm-flags.env", async () => {
    const argv = [
      "/usr/bin/kubelet",
      "--config=/var/lib/kubelet/config.yaml",
      "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
      "--pod-infra-container-image=registry.k8s.io/pause:3.10",
    ];
    const view = await viewOf(tree("kubeadm"), argv, [
      "/usr/lib/systemd/system/kubelet.service",
      "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
      "/var/lib/kubelet/kubeadm-flags.env",
    ]);
    expect(findSetting(view)).toEqual({
      value: "unix:///run/containerd/containerd.sock",
      from: "flag",
      files: ["/var/lib/kubelet/kubeadm-flags.env"],
    });
    expect(pointAt(view, ours)).toEqual([
      {
        path: "/var/lib/kubelet/kubeadm-flags.env",
        before: expect.stringContaining("containerd.sock"),
        after: `KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=${ours} --pod-infra-container-image=registry.k8s.io/pause:3.10"\n`,
      },
    ]);
  });

  test("a configuration file: both endpoints, comments kept", async () => {
    const view = await viewOf(
      tree("config-file"),
      ["kubelet", "--config", "/etc/kubernetes/kubelet.yaml"],
      [],
    );
    expect(findSetting(view)).toMatchObject({ value: "unix:///run/crio/crio.sock", from: "config" });
    expect(edited(view)).toEqual([
      `/etc/kubernetes/kubelet.yaml
# The cluster's own comment.
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: ${ours}# set by hand
evictionHard:
  memory.available: "100Mi"
imageServiceEndpoint: ${ours}
`.replace(`${ours}# set`, `${ours} # set`),
    ]);
  });

  test("a drop-in directory: a file of our own, read last, wins", async () => {
    const argv = [
      "kubelet",
      "--config=/etc/kubernetes/kubelet.yaml",
      "--config-dir=/etc/kubernetes/kubelet.conf.d",
    ];
    const view = await viewOf(tree("dropin"), argv, []);
    expect(findSetting(view)).toMatchObject({
      value: "unix:///run/containerd/containerd.sock",
      from: "drop-in",
      files: ["/etc/kubernetes/kubelet.conf.d/20-engine.conf"],
    });
    expect(pointAt(view, ours)).toEqual([
      {
        path: "/etc/kubernetes/kubelet.conf.d/99-bulkhead.conf",
        before: undefined,
        after: `apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncontainerRuntimeEndpoint: ${ours}\n`,
      },
    ]);
  });

  test("a drop-in directory of directories: the kubelet walks them all", async () => {
    const argv = [
      "kubelet",
      "--config=/etc/kubernetes/kubelet.yaml",
      "--config-dir=/etc/kubernetes/kubelet.conf.d",
    ];
    const view = await viewOf(tree("dropin-tree"), argv, []);
    const directory = "/etc/kubernetes/kubelet.conf.d";
    expect(view.dropins?.files.map(({ path }) => path.slice(directory.length + 1))).toEqual([
      "10-first/engine.conf",
      "50-site/engine.conf",
      "50-site.conf",
      "zz-last/pods.conf",
    ]);
    expect(findSetting(view)).toMatchObject({
      value: "unix:///run/crio/crio.sock",
      files: [`${directory}/50-site/engine.conf`],
    });
    expect(pointAt(view, ours)).toMatchObject([{ path: `${directory}/99-bulkhead.conf`, before: undefined }]);
  });

  test("a flag with its value as the next word, in the unit itself", async () => {
    const argv = [
      "/usr/local/bin/kubelet",
      "--container-runtime-endpoint",
      "/run/containerd/containerd.sock",
    ];
    const view = await viewOf(tree("unit-flag"), argv, ["/etc/systemd/system/kubelet.service"]);
    expect(edited(view)).toEqual([
      `/etc/systemd/system/kubelet.service
[Service]
ExecStart=/usr/local/bin/kubelet \\
  --container-runtime-endpoint ${ours} \\
  --node-ip=10.0.0.5
Restart=always
`,
    ]);
  });
});

const view = (partial: Partial<KubeletView>): KubeletView => ({
  argv: ["kubelet"],
  flagFiles: [],
  ...partial,
});
const config = (body: string): KubeletView => view({ config: { path: "/c", body } });

test("a kubelet that is served by us already needs no change", () => {
  expect(pointAt(config(`containerRuntimeEndpoint: ${ours}\n`), ours)).toEqual([]);
  expect(
    pointAt(view({ argv: ["kubelet", "--container-runtime-endpoint=/run/bulkhead/cri.sock"] }), ours),
  ).toEqual([]);
});

test("a file without the field gets it as a last line, whether or not it ended with a newline", () => {
  expect(pointAt(config("kind: KubeletConfiguration"), ours)[0]?.after).toBe(
    `kind: KubeletConfiguration\ncontainerRuntimeEndpoint: ${ours}\n`,
  );
});

test("an empty value counts as not set and is filled in place", () => {
  const given = config('a: 1\ncontainerRuntimeEndpoint: ""\nb: 2\n');
  expect(findSetting(given)).toMatchObject({ from: "default" });
  expect(pointAt(given, ours)[0]?.after).toBe(`a: 1\ncontainerRuntimeEndpoint: ${ours}\nb: 2\n`);
});

test("a file in JSON stays JSON", () => {
  const after = pointAt(
    config('{"kind":"KubeletConfiguration","containerRuntimeEndpoint":"unix:///x"}'),
    ours,
  )[0]?.after;
  expect(JSON.parse(after ?? "")).toEqual({ kind: "KubeletConfiguration", containerRuntimeEndpoint: ours });
});

test("a field that cannot be changed alone is refused, naming it", () => {
  expect(() => pointAt(config("{kind: K, containerRuntimeEndpoint: 'unix:///x'}"), ours)).toThrow(
    /Cannot set containerRuntimeEndpoint/,
  );
});

test("a drop-in that sorts after ours is edited itself", () => {
  const files = [{ path: "/d/99-zz.conf", body: "containerRuntimeEndpoint: unix:///x\n" }];
  const edits = pointAt(view({ dropins: { directory: "/d", files } }), ours);
  expect(edits).toEqual([
    { path: "/d/99-zz.conf", before: files[0]?.body, after: `containerRuntimeEndpoint: ${ours}\n` },
  ]);
});

test("one in a directory that is walked after ours, too, and one whose name only looks later is not", () => {
  const set = (path: string) => ({ path, body: "containerRuntimeEndpoint: unix:///x\n" });
  const paths = (...files: string[]) =>
    pointAt(view({ dropins: { directory: "/d", files: files.map(set) } }), ours).map(({ path }) => path);
  expect(paths("/d/zz/1.conf")).toEqual(["/d/zz/1.conf"]);
  expect(paths("/d/99-bulkhead.conf.d/1.conf")).toEqual(["/d/99-bulkhead.conf.d/1.conf"]);
  expect(paths("/d/99/zz.conf")).toEqual(["/d/99-bulkhead.conf"]);
  expect(["a-b.conf", "a/x", "a", "b", "a/x"].sort(byWalk)).toEqual(["a", "a/x", "a/x", "a-b.conf", "b"]);
});

test("a flag that stands in no file we know is refused, naming the files", () => {
  const given = view({
    argv: ["kubelet", "--container-runtime-endpoint=unix:///x"],
    flagFiles: [{ path: "/unit", body: "ExecStart=/wrapper\n" }],
  });
  expect(() => pointAt(given, ours)).toThrow(/none of "\/unit" has unix:\/\/\/x/);
});

test("the last of several flags is the one in force", () => {
  const argv = [
    "kubelet",
    "--container-runtime-endpoint=unix:///a",
    "--container-runtime-endpoint",
    "unix:///b",
  ];
  expect(findSetting(view({ argv })).value).toBe("unix:///b");
});

test("a kubelet without any file to write to is refused with what to do", () => {
  expect(() => pointAt(view({}), ours)).toThrow(/runs without --config/);
});
