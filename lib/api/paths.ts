/** Where Bulkhead's things stand on a node. The agent writes them, the runtime reads them. */
export const paths = {
  /** CRI socket of the runtime. */
  socket: "/run/bulkhead/cri.sock",
  /** What is valid until reboot: records, pinned namespaces, bundles. */
  state: "/run/bulkhead",
  /** Blobs, layers, image metadata. */
  root: "/var/lib/bulkhead",
  config: "/etc/bulkhead/runtime.yaml",
  handlers: "/etc/bulkhead/handlers.d",
  /** Everything the installer brings: versions/V and the symlink current. */
  opt: "/opt/bulkhead",
  /** systemd unit of the runtime. */
  unit: "bulkhead-runtime.service",
} as const;
