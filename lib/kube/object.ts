/** What every Kubernetes object has, as far as Bulkhead reads it (meta/v1 ObjectMeta). */
export type ObjectMeta = {
  name: string;
  namespace?: string;
  uid?: string;
  generation?: number;
  resourceVersion?: string;
  creationTimestamp?: string;
  deletionTimestamp?: string;
  finalizers?: string[];
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  ownerReferences?: OwnerReference[];
  managedFields?: unknown[];
};

export type OwnerReference = {
  apiVersion: string;
  kind: string;
  name: string;
  uid: string;
  controller?: boolean;
  blockOwnerDeletion?: boolean;
};

export type KubeObject = { apiVersion?: string; kind?: string; metadata: ObjectMeta };

/** A resource of the API: where its objects are served. `T` is what they parse to. */
export type Resource<T extends KubeObject> = {
  apiVersion: string;
  kind: string;
  plural: string;
  namespaced: boolean;
  /** Ask for metadata alone (PartialObjectMetadata): a Node is 10 KB, its metadata a tenth of that. */
  metadataOnly?: boolean;
  /** Carries the type; never set. */
  readonly __type?: T;
};

/** The key of an object in stores and queues: `namespace/name`, or `name` when it has no namespace. */
export const keyOf = (object: KubeObject): string =>
  object.metadata.namespace ? `${object.metadata.namespace}/${object.metadata.name}` : object.metadata.name;
