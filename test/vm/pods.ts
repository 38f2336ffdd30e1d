import type { Machine } from "./machine.ts";

/** What a test's pod may be beyond the usual. */
export type PodOptions = {
  command?: string[];
  handler?: string;
  parent?: string;
  pod?: object;
  image?: string;
  security?: object;
};

/** Runs pods by crictl in a machine; what they are is said by the guest's own files. */
export const podsOn = (machine: () => Machine, image: string) => {
  const json = async <T>(script: string, deadlineMs?: number): Promise<T> =>
    JSON.parse((await machine().sh(script, deadlineMs)).replace(/^time=.*\n/gm, "")) as T;
  const file = (path: string): Promise<string> =>
    machine()
      .sh(`cat '${path}'`)
      .then((text) => text.trim());

  let serial = 0;
  /** A pod and its container, running. The cgroups are what the kubelet of a systemd node asks for. */
  const running = async (
    resources: object,
    options: PodOptions = {},
  ): Promise<{ pod: string; id: string; slice: string; uid: string }> => {
    const uid = `0000000${++serial}`;
    const slice = options.parent ?? `kubepods-burstable-pod${uid}.slice`;
    const config = {
      metadata: { name: `pod-${uid}`, namespace: "vm", uid, attempt: 0 },
      log_directory: `/var/log/pods/${uid}`,
      linux: { cgroup_parent: slice, ...options.pod },
    };
    const container = {
      metadata: { name: "main", attempt: 0 },
      image: { image: options.image ?? image },
      command: options.command ?? ["sleep", "3600"],
      log_path: "main.log",
      linux: { resources, ...(options.security && { security_context: options.security }) },
    };
    const output = await machine().sh(`
      mkdir -p /var/log/pods/${uid}
      echo '${JSON.stringify(config)}' >/tmp/pod-${uid}.json
      echo '${JSON.stringify(container)}' >/tmp/container-${uid}.json
      # kubelet makes the pod's slice before it asks for the pod, and it outlives the containers in it.
      case ${slice} in *.slice) systemctl start ${slice};; esac
      pod=$(crictl runp --runtime='${options.handler ?? ""}' /tmp/pod-${uid}.json)
      id=$(crictl create $pod /tmp/container-${uid}.json /tmp/pod-${uid}.json)
      crictl start $id >/dev/null
      echo "$pod $id"
    `);
    const [pod = "", id = ""] = output.trim().split("\n").at(-1)?.split(" ") ?? [];
    return { pod, id, slice, uid };
  };
  /** The directory of a container's cgroup, by its first process. */
  const cgroupOf = async (id: string): Promise<string> => {
    const pid = await machine().sh(
      `crictl inspect -o go-template --template '{{.info.pid}}' ${id} 2>/dev/null | tail -1`,
    );
    const line = await file(`/proc/${pid.trim()}/cgroup`);
    return `/sys/fs/cgroup${line.replace(/^0::/, "")}`;
  };
  const exec = async (id: string, command: string): Promise<string> =>
    (await machine().sh(`crictl exec -s ${id} ${command} 2>/dev/null`)).trim();
  const remove = (pod: string): Promise<string> => machine().sh(`crictl rmp -f ${pod}`);

  return { json, file, running, cgroupOf, exec, remove };
};

/** Waits until the daemon answers. */
export const untilServed = "for i in $(seq 90); do crictl version >/dev/null 2>&1 && break; sleep 1; done";

/** Ends the daemon as the kernel's out-of-memory killer would, and starts it again. */
export const killDaemon = `systemctl kill -s KILL --kill-whom=main bulkhead-runtime.service; sleep 1; systemctl start bulkhead-runtime.service; ${untilServed}`;
