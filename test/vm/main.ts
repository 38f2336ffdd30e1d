import { connectCri } from "@bulkhead/lib/cri/client.ts";
import { hostFacts } from "@bulkhead/node-agent/installer/facts.ts";
import { mountedHost } from "@bulkhead/node-agent/installer/host.ts";
import { choosePlatform, tryPlatforms } from "@bulkhead/node-agent/installer/platform.ts";
import { runCanary } from "@bulkhead/node-agent/probe/canary.ts";
import { judge } from "@bulkhead/node-agent/probe/wall.ts";

/**
 * Runs inside the machine: says as JSON what the agent finds there of KVM and gVisor's platforms, which of them a profile
 * gets, and how its canary of a handler judges. Arguments: the paths of busybox, the probe of KVM, runsc and the
 * runtime's socket, the handler, and the platform that its profile promises.
 */
const [busybox = "", probe = "", runsc = "", socket = "", handler = "", promised = ""] =
  process.argv.slice(2);
// Emulation is slow, and so is a machine that is busy.
const signal = AbortSignal.timeout(400_000);
const host = mountedHost("/", busybox);
const { vm, view: outer } = await hostFacts(host, probe);
const trials = await tryPlatforms(host, runsc, vm.kvm, signal, 120_000);
using cri = connectCri(socket);
const { view, outside } = await runCanary(cri, handler, signal, {
  logs: { node: "/run/canary", here: "/run/canary" },
  deadlines: { exec: 120, remove: 120 },
});
const mark = { engine: "gvisor", network: "sandbox", platform: promised } as const;
console.log(
  JSON.stringify({
    kvm: vm.kvm,
    trials,
    auto: choosePlatform("auto", trials),
    verdict: judge("kernel", view, outer, mark, outside),
    kernelLog: view.kernelLog,
  }),
);
