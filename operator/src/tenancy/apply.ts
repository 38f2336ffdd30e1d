import type { Client } from "@bulkhead/lib/kube/client.ts";
import { hasCode, messageOf } from "@bulkhead/lib/std/errors.ts";
import type { TenancyPlan, TenancyState, TenancyStep } from "./plan.ts";

type Options = { signal: AbortSignal; fieldManager: string };
type Executors = {
  [K in TenancyStep["do"]]: (
    client: Pick<Client, "create" | "replace" | "delete">,
    step: Extract<TenancyStep, { do: K }>,
    options: Options,
  ) => Promise<unknown>;
};

const executors: Executors = {
  // Created, not applied: another's that appeared meanwhile must not be overwritten. The watch will bring it.
  create: (client, { resource, object }, options) =>
    client.create(resource, object, options).catch((error: unknown) => {
      if (!hasCode(error, "already-exists")) throw error;
    }),
  replace: (client, { resource, object, existing }, options) => {
    const { uid, resourceVersion, labels, annotations } = existing.metadata;
    return client.replace(
      resource,
      {
        ...object,
        metadata: {
          ...object.metadata,
          labels: { ...labels, ...object.metadata.labels },
          ...(annotations ? { annotations } : {}),
          ...(uid ? { uid } : {}),
          ...(resourceVersion ? { resourceVersion } : {}),
        },
      },
      options,
    );
  },
  delete: async (client, { resource, object }, { signal }) => {
    const { name, uid } = object.metadata;
    await client.delete(resource, name, { signal, ...(uid ? { uid } : {}) }).catch((error: unknown) => {
      if (!hasCode(error, "not-found")) throw error;
    });
  },
};

/** Does the steps in their order; what the API server says against a policy itself becomes a state instead of an error. */
export const applyTenancy = async (
  client: Pick<Client, "create" | "replace" | "delete">,
  { steps, state }: TenancyPlan,
  options: Options,
): Promise<TenancyState> => {
  try {
    for (const step of steps) {
      await (executors[step.do] as (...args: unknown[]) => Promise<unknown>)(client, step, options);
    }
    return state;
  } catch (error) {
    if (hasCode(error, "invalid-argument") || hasCode(error, "permission-denied")) {
      return { tenancy: "refused", message: messageOf(error) };
    }
    throw error;
  }
};
