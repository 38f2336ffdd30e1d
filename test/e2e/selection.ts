/**
 * Specs of [NodeConformance] that every `./dev test` runs on Bulkhead: what a runtime decides, each kind by a few, and
 * none that waits for minutes. Names as ginkgo writes them, without their tags.
 */
export const selection: readonly string[] = [
  "Container Runtime blackbox test when starting a container that exits should run with the expected status",
  "Container Runtime blackbox test on terminated container should report termination message if TerminationMessagePath is set",
  "Containers should use the image defaults if command and args are blank",
  "Containers should be able to override the image's default command and arguments",
  "Variable Expansion should allow substituting values in a container's command",
  "Security Context When creating a pod with privileged should run the container as unprivileged when false",
  "Security Context When creating a container with runAsUser should run the container with uid 65534",
  "Security Context When creating a pod with readOnlyRootFilesystem should run the container with writable rootfs when readOnlyRootFilesystem=false",
  "Security Context when creating containers with AllowPrivilegeEscalation should not allow privilege escalation when false",
  "Sysctls should support sysctls",
  "Kubelet when scheduling a busybox command in a pod should print the output to logs",
  "Pods should support retrieving logs from the container over websockets",
  "Pods should support remote command execution over websockets",
  "InitContainer should invoke init containers on a RestartNever pod",
  "Ephemeral Containers should update the ephemeral containers in an existing pod",
  "Container Lifecycle Hook when create a pod with lifecycle hook should execute poststart exec hook properly",
  "Container Lifecycle Hook when create a pod with lifecycle hook should execute prestop exec hook properly",
  "EmptyDir volumes should support (non-root,0777,tmpfs)",
  "EmptyDir volumes when FSGroup is specified new files should be created with FSGroup ownership when container is non-root",
  "ConfigMap should be consumable via the environment",
  "Downward API should provide host IP and pod IP as an env var if pod uses host network",
  "Networking Granular Checks: Pods should function for intra-pod communication: http",
  "RuntimeClass should schedule a Pod requesting a RuntimeClass without PodOverhead",
];

/** A spec's name without "[…]". */
export const untagged = (name: string): string => name.replace(/\[[^\]]*\]\s*/g, "").trim();

/** The regular expression by which ginkgo finds exactly that spec: tags may stand between any two words. */
export const focusOf = (name: string): string => {
  const words = name.split(" ").map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const tags = "(?:\\[[^\\]]*\\]\\s*)*";
  return `\\[sig-[a-z]+\\]\\s*${tags}${words.join(`\\s+${tags}`)}(?:\\s*\\[[^\\]]*\\])*$`;
};
