import * as z from "zod";
import { firecrackerHandler, kataHandler } from "./kata.ts";
import { shimHandler } from "./shim.ts";
import { Tenancy, TenancyStatus } from "./tenancy.ts";

/**
 * RuntimeProfile (cluster-scoped, written by people): which wall a workload stands behind.
 * These types are the only source: crds/ is generated from them, and the operator parses with them.
 */

/** Name of a Kubernetes object that may also stand in a label value and a file name (RFC 1123 label). */
export const dnsLabel = z
  .string()
  .min(1)
  .max(63)
  .regex(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/, "must be a lower-case RFC 1123 label");

/** A Kubernetes quantity, such as 120Mi or 250m. */
const quantity = z
  .string()
  .max(32)
  .regex(/^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$/, "must be a Kubernetes quantity");

/** What a pod takes beside its containers: said by people, or `measured`, the most that canaries of the fleet took. */
const overheadMemory = z
  .string()
  .max(32)
  .regex(
    /^(measured|[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?)$/,
    "must be a Kubernetes quantity, or the word measured",
  );

/** A duration in seconds, minutes or hours, such as 60s. */
const duration = z
  .string()
  .max(16)
  .regex(/^[1-9][0-9]*(s|m|h)$/, "must be a duration such as 60s, 5m or 1h");

/** A duration of a spec in seconds. */
export const secondsOf = (text: string): number =>
  Number.parseInt(text, 10) * ({ s: 1, m: 60, h: 3600 }[text.at(-1) ?? "s"] ?? 1);

export const intOrPercent = z.union([z.int().min(1), z.string().regex(/^(100|[1-9]?[0-9])%$/)]).meta({
  "x-kubernetes-int-or-string": true,
  "x-kubernetes-validations": [
    {
      rule: "type(self) == int ? self >= 1 : self.matches('^(100|[1-9]?[0-9])%$')",
      message: "must be a number of at least 1 or a percentage such as 25%",
    },
  ],
});

/** Node labels that must all match. */
const nodeSelector = z
  .record(
    z.string(),
    z
      .string()
      .max(63)
      .regex(/^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$/, "must be a label value"),
  )
  .meta({ maxProperties: 32 });

const toleration = z
  .object({
    key: z.string().max(316).optional(),
    operator: z.enum(["Exists", "Equal"]).optional(),
    value: z.string().max(63).optional(),
    effect: z.enum(["NoSchedule", "PreferNoSchedule", "NoExecute"]).optional(),
    tolerationSeconds: z.int().optional(),
  })
  .meta({
    "x-kubernetes-validations": [
      {
        rule: "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
        message: "value must be empty when operator is Exists",
      },
      {
        rule: "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
        message: "operator must be Exists when key is left out",
      },
      {
        rule: "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
        message: "effect must be NoExecute when tolerationSeconds is set",
      },
    ],
  });

/** Extra arguments of an OCI runtime's command line: `--flag` or `--flag=value`, nothing else; no two dots in a row. */
const flags = z
  .array(
    z
      .string()
      .max(256)
      .regex(
        /^--[a-z][a-z0-9-]*(=([.]?[A-Za-z0-9_:/,-])*[.]?)?$/,
        "must be --flag or --flag=value, without spaces, quotes or ..",
      ),
  )
  .max(32);

const oci = z.object({ flags: flags.optional() });

/**
 * Flags of runsc that a pod may set by annotation (dev.gvisor.flag.NAME) where its profile names them. runsc's own list
 * of what makes no sandbox weaker: it checks their values, so that no pod writes an overlay to a directory of the node.
 */
export const tenantFlags = [
  ...([
    "debug",
    "debug-command",
    "debug-to-user-log",
    "strace",
    "strace-syscalls",
    "strace-log-size",
  ] as const),
  ...(["overlay2", "oci-seccomp", "in-sandbox-cgroup", "host-uds", "qdisc", "qdisc-tbf-rate"] as const),
  ...([
    "qdisc-tbf-burst",
    "net-disconnect-ok",
    "allow-connected-on-save",
    "pause-external-networking",
  ] as const),
  "reproduce-nftables",
] as const;

/** Flags of runsc that have a field of their own or are Bulkhead's: a second place to say them would hide the first. */
export const ownedFlags = [
  ...["platform", "network", "overlay2", "overlay", "nvproxy", "nvproxy-docker", "nvproxy-driver-version"],
  ...["nvproxy-allowed-driver-capabilities", "root", "log", "log-format", "systemd-cgroup", "ignore-cgroups"],
  ...["rootless", "allow-flag-override", "metric-server", "allow-rootfs-tar-annotation"],
] as const;

const gvisor = z
  .object({
    /** How the sentry intercepts system calls. auto takes kvm where it boots, else systrap. */
    platform: z.enum(["auto", "systrap", "kvm", "ptrace"]).default("auto"),
    /** sandbox: gVisor's own network stack. host: the host's (a weaker wall). none: loopback only. */
    network: z.enum(["sandbox", "host", "none"]).default("sandbox"),
    /** Where writes to the root filesystem go. directory: files below /var/lib/bulkhead that no one can open. */
    overlay: z.enum(["memory", "self", "directory", "none"]).default("memory"),
    /** root: volumes are written through. all: what is written to a volume goes with the container too. */
    overlayScope: z.enum(["root", "all"]).optional(),
    /** What one container may write at most. */
    overlaySize: quantity.optional(),
    /** node: an emptyDir is the node's directory. sandbox: gVisor keeps it, which is faster; the node sees no files. */
    emptyDir: z.enum(["node", "sandbox"]).optional(),
    /** GPUs by gVisor's proxy of NVIDIA's driver. */
    nvproxy: z
      .object({
        /** The driver's version to speak; the node's own when left out. */
        driverVersion: z
          .string()
          .regex(/^(latest|[0-9]+(\.[0-9]+){1,2})$/, "must be latest or a version such as 580.126.20")
          .optional(),
        /** What a container may ask for by NVIDIA_DRIVER_CAPABILITIES. */
        capabilities: z
          .array(z.enum(["compute", "utility", "graphics", "video", "ngx"]))
          .min(1)
          .max(5)
          .optional(),
      })
      .optional(),
    /** What a pod may set for itself by annotations; any other that begins with dev.gvisor. is refused. */
    tenant: z
      .object({
        flags: z.array(z.enum(tenantFlags)).max(tenantFlags.length).optional(),
        /** dev.gvisor.spec.mount.* and dev.gvisor.empty-dir.* */
        volumeHints: z.boolean().optional(),
      })
      .optional(),
    flags: flags.optional(),
  })
  .meta({
    "x-kubernetes-validations": [
      {
        // Not by a pattern: the API server reckons that too dear for a hundred profiles of a node.
        rule: `!has(self.flags) || self.flags.all(f, !(f.split('=')[0] in [${ownedFlags.map((flag) => `'--${flag}'`).join(", ")}]))`,
        message: `flags cannot set ${ownedFlags.join(", ")}: use the field of that name, where there is one`,
      },
      {
        rule: "self.overlay != 'none' || (!has(self.overlayScope) && !has(self.overlaySize))",
        message: "overlayScope and overlaySize need an overlay other than none",
      },
    ],
  });

/** Exactly one of these is set. */
const handler = z
  .object({
    runc: oci.optional(),
    crun: oci.optional(),
    gvisor: gvisor.optional(),
    kata: kataHandler.optional(),
    firecracker: firecrackerHandler.optional(),
    shim: shimHandler.optional(),
  })
  .meta({
    "x-kubernetes-validations": [
      {
        rule: "[has(self.runc), has(self.crun), has(self.gvisor), has(self.kata), has(self.firecracker), has(self.shim)].filter(x, x).size() == 1",
        message: "exactly one of runc, crun, gvisor, kata, firecracker, shim must be set",
      },
    ],
  });

/** The kinds of wall, in the order of spec.handler. */
export const handlerKinds = ["runc", "crun", "gvisor", "kata", "firecracker", "shim"] as const;
export type HandlerKind = (typeof handlerKinds)[number];

const artifact = z
  .object({
    /** The files that come with the node agent's image. */
    bundled: z.boolean().optional(),
    /** An OCI image or artifact, by digest. */
    image: z
      .string()
      .max(512)
      .regex(/@sha256:[0-9a-f]{64}$/, "must name the image by digest (…@sha256:…)")
      .optional(),
    /** Who must have signed the image; the digest alone is enough where this is left out. */
    verify: z
      .object({
        cosign: z.object({
          /** In PEM, as of cosign generate-key-pair. A signature by one of them is enough. */
          publicKeys: z
            .array(
              z
                .string()
                .max(4096)
                .regex(
                  /^-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]+-----END PUBLIC KEY-----\n?$/,
                  "must be a public key in PEM (-----BEGIN PUBLIC KEY-----)",
                ),
            )
            .min(1)
            .max(8),
          /** repository: the signature names the image's own repository. any: one of a copy counts, too. */
          identity: z.enum(["repository", "any"]).default("repository"),
        }),
      })
      .optional(),
    /**
     * Whether an artifact whose files were changed on a node is fetched again. Left out or false: it is told, and no
     * new pods of the profile come to that node.
     */
    repair: z.boolean().optional(),
  })
  .meta({
    "x-kubernetes-validations": [
      {
        rule: "(has(self.bundled) && self.bundled) != has(self.image)",
        message: "exactly one of bundled: true and image must be set",
      },
      {
        rule: "has(self.image) || (!has(self.verify) && !has(self.repair))",
        message: "verify and repair need image",
      },
    ],
  });

export const RuntimeProfileSpec = z
  .object({
    handler,
    artifact: artifact.default({ bundled: true }),
    /** bulkhead: our runtime runs it. node: the node's own engine is configured to. */
    engine: z.enum(["bulkhead", "node"]).default("bulkhead"),
    nodeSelector: nodeSelector.optional(),
    tolerations: z.array(toleration).max(16).optional(),
    runtimeClass: z
      .object({
        /** Name of the RuntimeClass; the profile's name when left out. Pods name it, so it cannot change. */
        name: dnsLabel.optional(),
        overhead: z.object({ memory: overheadMemory.optional(), cpu: quantity.optional() }).optional(),
        /**
         * label: pods go only to nodes whose canary passed. startupTaint: to every node of nodeSelector that has lost the
         * taint handler.bulkhead.dev/PROFILE, which it registered with. none: to every node of nodeSelector.
         */
        readiness: z.enum(["label", "startupTaint", "none"]).default("label"),
      })
      .meta({
        "x-kubernetes-validations": [
          {
            rule: "has(self.name) == has(oldSelf.name) && (!has(self.name) || self.name == oldSelf.name)",
            message: "name cannot be changed: pods use it",
          },
        ],
      })
      .default({ readiness: "label" }),
    rollout: z
      .object({
        canaryNodes: z.int().min(0).max(100).default(1),
        maxUnavailable: intOrPercent.default("25%"),
        failureThreshold: z.int().min(1).default(2),
        /** How long a node must stay ready on a new revision before it counts as such and others follow. */
        minReadySeconds: z.int().min(0).max(604_800).default(0),
        /** Halt: no further node gets the revision. Rollback: every node goes back to the last that all of them had. */
        onFailure: z.enum(["Halt", "Rollback"]).default("Halt"),
        paused: z.boolean().default(false),
        /** Revisions kept beside those in use, to go back to. */
        revisionHistoryLimit: z.int().min(0).max(50).default(10),
        /** Another time than before makes a new revision of the same content: every node installs and proves it again. */
        restartedAt: z.string().meta({ format: "date-time" }).optional(),
        /**
         * Pods of the profile are evicted from a node before it goes to another revision, within their budgets. What is
         * left after the deadline stays, on the revision that it began with. Left out: no pod is evicted.
         */
        drain: z.object({ deadline: duration.default("15m") }).optional(),
      })
      .default({
        canaryNodes: 1,
        maxUnavailable: "25%",
        failureThreshold: 2,
        minReadySeconds: 0,
        onFailure: "Halt",
        paused: false,
        revisionHistoryLimit: 10,
      }),
    probe: z
      .object({ interval: duration.default("60s"), assertIsolation: z.boolean().default(true) })
      .default({ interval: "60s", assertIsolation: true }),
    /** Which namespaces stand behind this wall; without it the wall is only for pods that ask. */
    tenancy: Tenancy.optional(),
  })
  .meta({
    "x-kubernetes-validations": [
      {
        rule: "!has(self.rollout.drain) || self.runtimeClass.readiness == 'label'",
        message: "rollout.drain needs runtimeClass.readiness: label, by which evicted pods stay away",
      },
    ],
  });
export type RuntimeProfileSpec = z.infer<typeof RuntimeProfileSpec>;

/** A condition as in meta/v1. */
export const Condition = z.object({
  type: z.string().max(316),
  status: z.enum(["True", "False", "Unknown"]),
  reason: z.string().max(1024),
  message: z.string().max(32768),
  lastTransitionTime: z.string().meta({ format: "date-time" }),
  observedGeneration: z.int().optional(),
});
export type Condition = z.infer<typeof Condition>;

/** Conditions by type, as a map for server-side apply. */
export const conditionList = z
  .array(Condition)
  .max(32)
  .meta({ "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"] });

export const profileConditions = [
  "Accepted",
  "RuntimeClassReady",
  "Progressing",
  "Ready",
  "Degraded",
  "TenancyEnforced",
] as const;

export const RuntimeProfileStatus = z.object({
  observedGeneration: z.int().optional(),
  conditions: conditionList.optional(),
  nodes: z.object({ desired: z.int(), updated: z.int(), ready: z.int(), failed: z.int() }).optional(),
  currentRevision: z.string().optional(),
  updateRevision: z.string().optional(),
  /** The spec's revision failed on too many nodes: `to` is what they shall have until the spec changes. */
  rolledBack: z
    .object({ revision: z.string(), to: z.string(), generation: z.int(), message: z.string().max(512) })
    .optional(),
  /** At most 20, so that this object does not grow with the cluster. */
  failedNodes: z
    .array(z.object({ name: z.string(), reason: z.string(), message: z.string() }))
    .max(20)
    .optional(),
  pods: z.int().optional(),
  startSeconds: z.object({ p50: z.number(), p99: z.number() }).optional(),
  /** What a pod costs beside its containers: as the RuntimeClass declares it, and the most that a canary took. */
  overheadMemory: z
    .object({
      declared: z.string(),
      measured: z.string(),
      /** Of `overhead.memory: measured`: the revision for which `declared` is raised only. */
      revision: z.string().optional(),
    })
    .optional(),
  tenancy: TenancyStatus.optional(),
});
export type RuntimeProfileStatus = z.infer<typeof RuntimeProfileStatus>;

export type RuntimeProfile = {
  apiVersion: string;
  kind: "RuntimeProfile";
  metadata: {
    name: string;
    uid?: string;
    generation?: number;
    resourceVersion?: string;
    creationTimestamp?: string;
    deletionTimestamp?: string;
    finalizers?: string[];
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
  };
  spec: RuntimeProfileSpec;
  status?: RuntimeProfileStatus;
};

/** What of a profile makes its revision: what reaches the node, and when it was last restarted. */
export const revisionedPart = ({ handler, artifact, engine, probe, rollout }: RuntimeProfileSpec) => ({
  handler,
  artifact,
  engine,
  probe,
  ...(rollout?.restartedAt === undefined ? {} : { restartedAt: rollout.restartedAt }),
});

/** Which wall the profile names. */
export const handlerKind = (spec: Pick<RuntimeProfileSpec, "handler">): HandlerKind =>
  handlerKinds.find((kind) => spec.handler[kind] !== undefined) ?? "runc";

/** Name of the profile's RuntimeClass. Its handler is always the profile's own name. */
export const runtimeClassName = (profile: Pick<RuntimeProfile, "metadata" | "spec">): string =>
  profile.spec.runtimeClass.name ?? profile.metadata.name;
