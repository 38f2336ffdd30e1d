import { annotationNames } from "@bulkhead/lib/api/kata.ts";
import { tenantFlags } from "@bulkhead/lib/api/runtime-profile.ts";
import type { JudgedPod, Pod } from "@bulkhead/lib/kube/resources.ts";
import { celLiteral } from "./selector.ts";
import type { Wall } from "./wall.ts";

/**
 * What makes a hole in a pod's wall, one rule each: for the API server as CEL over `variables.spec`, `.containers` and
 * `.annotations` (see policies.ts), and for the operator, which counts the pods that run already. A test holds both to
 * the same answers. docs/tenancy.md says of each why.
 */
export type Rule = {
  /** CamelCase: stands in audit annotations, in status and in Events. */
  name: string;
  /** CEL; true when the rule is kept. */
  cel: string;
  /** The same of a pod: true when the rule is broken. */
  isBroken: (pod: JudgedPod) => boolean;
  /** What must be, with the field's name. */
  message: string;
  /** Only where the node's own kernel is the wall: behind a kernel of its own the pod harms but itself. */
  sharedKernelOnly?: true;
};

const containersOf = ({ spec = {} }: JudgedPod) => [
  ...(spec.containers ?? []),
  ...(spec.initContainers ?? []),
  ...(spec.ephemeralContainers ?? []),
];

/** Capabilities that may be added: those of the Pod Security Standard "baseline". */
const capabilities = [
  ...["AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"],
  ...["SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"],
];

/** Annotations by which runtimes take orders that no field of a pod could give: host devices, another handler. */
const annotations = ["cdi.k8s.io/", "io.kubernetes.cri-o.", "run.oci.", "dev.gvisor.", "io.katacontainers."];
/**
 * Of gVisor's and Kata's, what a profile may let its pods say: what it does not name reaches neither (docs/gvisor.md,
 * docs/kata.md). The rest must not even be asked for: CRI-O hands every annotation on, and runsc obeys those of the
 * root file system and of the cgroup.
 */
const grantable = [
  ...tenantFlags.map((flag) => `dev.gvisor.flag.${flag}`),
  ...annotationNames.map((name) => `io.katacontainers.config.hypervisor.${name}`),
];
const grantablePrefixes = ["dev.gvisor.spec.mount.", "dev.gvisor.empty-dir."];

/** SELinux types of the Pod Security Standard "baseline": all of them confined. */
const seLinuxTypes = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

const unconfined = (field: "seccompProfile" | "appArmorProfile"): Pick<Rule, "cel" | "isBroken"> => ({
  cel: `variables.spec.?securityContext.?${field}.?type.orValue("") != "Unconfined" && variables.containers.all(c, c.?securityContext.?${field}.?type.orValue("") != "Unconfined")`,
  isBroken: (pod) =>
    [pod.spec ?? {}, ...containersOf(pod)].some(
      ({ securityContext }) => securityContext?.[field]?.type === "Unconfined",
    ),
});

const seLinuxKept = (of: string): string => {
  const field = (name: string) => `${of}.?securityContext.?seLinuxOptions.?${name}.orValue("")`;
  return `${field("type")} in ${celLiteral(seLinuxTypes)} && ${field("user")} == "" && ${field("role")} == ""`;
};

const hostNamespace = (field: "hostPID" | "hostIPC" | "hostNetwork", name: string): Rule => ({
  name,
  cel: `!variables.spec.?${field}.orValue(false)`,
  isBroken: ({ spec }) => spec?.[field] === true,
  message: `spec.${field} must not be true`,
});

export const rules: readonly Rule[] = [
  hostNamespace("hostPID", "HostPID"),
  hostNamespace("hostIPC", "HostIPC"),
  hostNamespace("hostNetwork", "HostNetwork"),
  {
    name: "HostPath",
    cel: "!variables.spec.?volumes.orValue([]).exists(v, has(v.hostPath))",
    isBroken: ({ spec }) => (spec?.volumes ?? []).some((volume) => volume.hostPath !== undefined),
    message: "spec.volumes[*].hostPath must not be set",
  },
  {
    name: "Privileged",
    cel: "variables.containers.all(c, !c.?securityContext.?privileged.orValue(false))",
    isBroken: (pod) => containersOf(pod).some(({ securityContext }) => securityContext?.privileged === true),
    message: "securityContext.privileged of a container must not be true",
  },
  {
    name: "ProcMount",
    cel: 'variables.containers.all(c, c.?securityContext.?procMount.orValue("Default") == "Default")',
    isBroken: (pod) =>
      containersOf(pod).some(
        ({ securityContext }) => (securityContext?.procMount ?? "Default") !== "Default",
      ),
    message: "securityContext.procMount of a container must be Default",
  },
  {
    name: "RuntimeAnnotation",
    cel: `!variables.annotations.exists(a, ${celLiteral(annotations)}.exists(prefix, a.startsWith(prefix)) && !(a in ${celLiteral(grantable)}) && !${celLiteral(grantablePrefixes)}.exists(prefix, a.startsWith(prefix)))`,
    isBroken: ({ metadata }) =>
      Object.keys(metadata.annotations ?? {}).some(
        (name) =>
          annotations.some((prefix) => name.startsWith(prefix)) &&
          !grantable.includes(name) &&
          !grantablePrefixes.some((prefix) => name.startsWith(prefix)),
      ),
    message: `metadata.annotations must not begin with ${annotations.join(", ")}: they give orders to a runtime, and no profile can let a pod give these`,
  },
  {
    name: "Capabilities",
    cel: `variables.containers.all(c, c.?securityContext.?capabilities.?add.orValue([]).all(name, name in ${celLiteral(capabilities)}))`,
    isBroken: (pod) =>
      containersOf(pod).some(({ securityContext }) =>
        (securityContext?.capabilities?.add ?? []).some((name) => !capabilities.includes(name)),
      ),
    message: `securityContext.capabilities.add of a container must be of ${capabilities.join(", ")}`,
    sharedKernelOnly: true,
  },
  {
    name: "Seccomp",
    ...unconfined("seccompProfile"),
    message: "securityContext.seccompProfile.type must not be Unconfined",
    sharedKernelOnly: true,
  },
  {
    name: "AppArmor",
    ...unconfined("appArmorProfile"),
    message: "securityContext.appArmorProfile.type must not be Unconfined",
    sharedKernelOnly: true,
  },
  {
    name: "SELinux",
    cel: `(${seLinuxKept("variables.spec")}) && variables.containers.all(c, ${seLinuxKept("c")})`,
    isBroken: (pod) =>
      [pod.spec ?? {}, ...containersOf(pod)].some(({ securityContext }) => {
        const { type = "", user = "", role = "" } = securityContext?.seLinuxOptions ?? {};
        return !seLinuxTypes.includes(type) || user !== "" || role !== "";
      }),
    message: `securityContext.seLinuxOptions must have no user and no role, and a type of ${seLinuxTypes.filter(Boolean).join(", ")}`,
    sharedKernelOnly: true,
  },
];

/** The rules that hold behind a wall. Of a shim nobody knows what it is: all of them. */
export const rulesBehind = (wall: Wall): Rule[] =>
  rules.filter((rule) => !rule.sharedKernelOnly || wall === "namespaces" || wall === "unknown");

/** The names of all rules that a pod breaks, whatever its wall. */
export const brokenBy = (pod: JudgedPod): string[] =>
  rules.filter((rule) => rule.isBroken(pod)).map((rule) => rule.name);

/** A pod as the operator keeps it: judged when it arrives, for clusters have a hundred thousand. */
export type WatchedPod = Pod & { broken?: string[] };
