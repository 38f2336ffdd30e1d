import type { AuthConfig, PullImageRequest } from "@bulkhead/lib/gen/cri_pb.js";

/** Pods whose credentials are kept; a node runs some hundred. */
const maxPods = 1000;

/**
 * The registry credentials that each pod's pulls came with, in memory only. They serve that pod alone: an image
 * that one side has and the other needs is pulled again with what the same pod was allowed.
 */
export class Credentials {
  readonly #byUid = new Map<string, Map<string, AuthConfig>>();

  remember(request: PullImageRequest): void {
    const uid = request.sandboxConfig?.metadata?.uid;
    if (!uid || !request.auth || !request.image) return;
    const known = this.#byUid.get(uid) ?? new Map<string, AuthConfig>();
    this.#byUid.delete(uid);
    this.#byUid.set(uid, known.set(repository(request.image.image), request.auth));
    const [oldest] = this.#byUid.keys();
    if (this.#byUid.size > maxPods && oldest) this.#byUid.delete(oldest);
  }

  of(uid: string | undefined, image: string): AuthConfig | undefined {
    return uid === undefined ? undefined : this.#byUid.get(uid)?.get(repository(image));
  }
}

/** The reference without tag and digest. */
const repository = (image: string): string => image.replace(/@.*$/, "").replace(/:[^:/]*$/, "");
