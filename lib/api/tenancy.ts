import * as z from "zod";

/** spec.tenancy of a RuntimeProfile: whose pods stand behind its wall, and what happens to those that would not. */

const labelKey = z
  .string()
  .max(316)
  .regex(
    /^([a-z0-9]([-a-z0-9.]*[a-z0-9])?\/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$/,
    "must be a label key",
  );
const labelValue = z
  .string()
  .max(63)
  .regex(/^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$/, "must be a label value");

/** A label selector as in meta/v1: every part must hold. */
export const LabelSelector = z
  .object({
    matchLabels: z.record(labelKey, labelValue).meta({ maxProperties: 16 }).optional(),
    matchExpressions: z
      .array(
        z
          .object({
            key: labelKey,
            operator: z.enum(["In", "NotIn", "Exists", "DoesNotExist"]),
            values: z.array(labelValue).max(32).optional(),
          })
          .meta({
            "x-kubernetes-validations": [
              {
                rule: "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
                message: "values must be given for In and NotIn, and only for these",
              },
            ],
          }),
      )
      .max(16)
      .optional(),
  })
  .meta({
    "x-kubernetes-validations": [
      {
        // An empty selector would take in every namespace there is, and the system's.
        rule: "(has(self.matchLabels) && self.matchLabels.size() > 0) || (has(self.matchExpressions) && self.matchExpressions.size() > 0)",
        message: "must select by at least one label",
      },
    ],
  });
export type LabelSelector = z.infer<typeof LabelSelector>;

/** Whoever these make pods for was judged already, or never: exempting one would exempt every tenant. */
const controllers = [
  "cronjob-controller",
  "daemon-set-controller",
  "deployment-controller",
  "job-controller",
  "replicaset-controller",
  "replication-controller",
  "statefulset-controller",
].map((name) => `kube-system/${name}`);

const dns = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?";

export const Tenancy = z.object({
  namespaceSelector: LabelSelector,
  /** Enforce refuses what would stand outside the wall. Audit lets it in, warns, and records it. */
  mode: z.enum(["Audit", "Enforce"]).default("Audit"),
  /** A pod that names no RuntimeClass gets this profile's. */
  default: z.boolean().default(true),
  exempt: z
    .object({
      /** By name, whatever their labels. */
      namespaces: z
        .array(
          z
            .string()
            .max(63)
            .regex(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/, "must be a namespace's name"),
        )
        .max(64)
        .optional(),
      /** NAMESPACE/NAME of service accounts whose own requests are not judged. */
      serviceAccounts: z
        .array(
          z
            .string()
            .max(317)
            .regex(new RegExp(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?/${dns}$`), "must be NAMESPACE/NAME"),
        )
        .max(64)
        .optional()
        .meta({
          "x-kubernetes-validations": [
            {
              rule: `!self.exists(name, name in [${controllers.map((name) => `'${name}'`).join(", ")}])`,
              message: "must not name a controller that makes pods for everyone",
            },
          ],
        }),
    })
    .optional(),
});
export type Tenancy = z.infer<typeof Tenancy>;

/** How tenancy stands: each list at most 20 entries, so that this object does not grow with the cluster. */
export const TenancyStatus = z.object({
  /** Namespaces that stand behind this profile's wall. */
  namespaces: z.int(),
  /** Pods in them that run outside of it. */
  podsOutside: z.int(),
  /** The namespaces with the most of these. */
  outside: z
    .array(
      z.object({
        namespace: z.string(),
        pods: z.int(),
        /** One of them, and what is weak about it. */
        example: z.string(),
        reason: z.string(),
      }),
    )
    .max(20)
    .optional(),
  /** Namespaces that an older profile has. */
  conflicts: z
    .array(z.object({ namespace: z.string(), profile: z.string() }))
    .max(20)
    .optional(),
});
export type TenancyStatus = z.infer<typeof TenancyStatus>;
