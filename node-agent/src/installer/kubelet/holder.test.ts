import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { viewOf } from "../facts.ts";
import { realIn, resolveIn } from "../host.ts";
import { holderOf, k3sKubelet, kubeliteArgs, kubeliteArgsFile } from "./holder.ts";
import { findSetting } from "./setting.ts";

describe("the process that holds the kubelet is known by its command line", () => {
  test.each([
    ["process", ["/usr/bin/kubelet", "--config=/var/lib/kubelet/config.yaml"]],
    ["process", ["kubelet"]],
    // As k3s' title leaves it: one word, and what was behind it zeroed.
    ["k3s", ["/usr/local/bin/k3s server", "", "", ""]],
    ["k3s", ["/usr/local/bin/k3s agent"]],
    ["k3s", ["/usr/local/bin/k3s", "--debug", "agent", "--server", "https://10.0.0.1:6443"]],
    ["k3s", ["./k3s-arm64", "server"]],
    [
      "microk8s",
      ["/snap/microk8s/8511/kubelite", "--kubelet-args-file=/var/snap/microk8s/8511/args/kubelet"],
    ],
  ])("%s: %j", (holder, argv) => {
    expect(holderOf(argv)).toBe(holder);
  });

  test.each([
    ["/usr/local/bin/k3s", "kubectl", "get", "pods"],
    ["/usr/local/bin/k3s", "ctr", "-n", "k8s.io", "c", "ls"],
    ["/usr/local/bin/k3s"],
    ["containerd", "-c", "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"],
    ["vim", "/usr/bin/kubelet"],
    [""],
  ])("nobody: %j", (...argv) => {
    expect(holderOf(argv)).toBeUndefined();
  });
});

describe("k3s' kubelet", () => {
  const root = join(import.meta.dirname, "../../../test-data/hosts/k3s");
  const refuse = () => Promise.reject(new Error("nothing runs here"));
  const host = {
    at: (path: string) => resolveIn(root, path),
    real: (path: string) => realIn(root, path),
    run: refuse,
    fetch: refuse,
    serveLayout: refuse,
  };
  const setting = async (program: string) => {
    const { argv, endpoint } = k3sKubelet(program);
    return findSetting({ ...(await viewOf(host, argv, [])), fallback: endpoint });
  };

  test("has its endpoint in a file below the data directory that k3s runs from", async () => {
    expect(await setting("/data/k3s/data/0123456789abcdef/bin/k3s")).toEqual({
      value: "unix:///run/crio/crio.sock",
      from: "drop-in",
      files: ["/data/k3s/agent/etc/kubelet.conf.d/00-k3s-defaults.conf"],
    });
  });

  test.each([
    "/var/lib/rancher/k3s/data/0123456789abcdef/bin/k3s",
    "/var/lib/rancher/k3s/data/0123456789abcdef/bin/k3s (deleted)",
    "/usr/local/bin/k3s",
    "",
  ])("is served by k3s' containerd where no file names another: %s", async (program) => {
    expect(await setting(program)).toEqual({
      value: "unix:///run/k3s/containerd/containerd.sock",
      from: "default",
      files: [],
    });
  });
});

describe("microk8s' kubelet", () => {
  test("has its arguments in the file that kubelite was told, or in microk8s' own", () => {
    const flag = "--kubelet-args-file=";
    expect(kubeliteArgsFile(["kubelite", `${flag}/a`, "--proxy-args-file=/p", `${flag}/b`])).toBe("/b");
    expect(kubeliteArgsFile(["kubelite"])).toBe("/var/snap/microk8s/current/args/kubelet");
  });

  test("is told what the file says with kubelite's own variables", () => {
    const text = [
      "# --container-runtime-endpoint=/nowhere",
      `--kubeconfig=\${SNAP_DATA}/credentials/kubelet.config`,
      "  --root-dir $SNAP_COMMON/var/lib/kubelet ",
      "",
      `--container-runtime-endpoint="\${SNAP_COMMON}/run/containerd.sock"`,
      `--node-labels='\${UNSET}microk8s.io/cluster=true'`,
    ];
    const environ = "SNAP_DATA=/var/snap/microk8s/8511\0SNAP_COMMON=/var/snap/microk8s/common\0A=b=c\0";
    expect(kubeliteArgs(text.join("\n"), environ)).toEqual([
      "--kubeconfig=/var/snap/microk8s/8511/credentials/kubelet.config",
      "--root-dir",
      "/var/snap/microk8s/common/var/lib/kubelet",
      "--container-runtime-endpoint=/var/snap/microk8s/common/run/containerd.sock",
      "--node-labels=microk8s.io/cluster=true",
    ]);
  });
});
