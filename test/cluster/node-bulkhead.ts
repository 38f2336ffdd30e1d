import { paths } from "@bulkhead/lib/api/paths.ts";
import { dump } from "js-yaml";
import { unitFile } from "../../node-agent/src/installer/files.ts";
import type { NodeDescription } from "./description.ts";
import type { NodeFile } from "./node-files.ts";

/** The kubelet's socket on a node whose engine is Bulkhead. */
export const bulkheadSocket = paths.socket;

/** The files of a node that Bulkhead's runtime owns: no engine stands behind it, its runc is everybody's handler. */
export const bulkheadFiles = ({ runtime }: NodeDescription): NodeFile[] => [
  { path: paths.config, text: dump({ ...configuration, ...runtime }) },
  // The agent's own unit, by the name that it has there.
  { path: `/etc/systemd/system/${paths.unit}`, text: unitFile() },
];

const runc = `${paths.opt}/current/bin/runc`;

const configuration = {
  socket: paths.socket,
  conmon: `${paths.opt}/current/bin/conmon`,
  defaultHandler: "runc",
  runtimes: [
    { name: "runc", kind: "oci", binary: runc },
    // The handler that upstream's end-to-end suite expects of a node.
    { name: "test-handler", kind: "oci", binary: runc },
  ],
  registries: { configPath: "/etc/containerd/certs.d" },
  metrics: { listen: "127.0.0.1:9474" },
};
