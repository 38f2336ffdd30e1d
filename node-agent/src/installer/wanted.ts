import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";

/** The work was on a revision that is wanted no more. */
export class NotWanted extends Error {
  constructor(name: string) {
    super(`Profile "${name}" is no longer wanted as it was`);
    this.name = "NotWanted";
  }
}

/** Which revision of each profile is wanted right now, so that a canary of another one, which may take minutes, ends. */
export class Wanted {
  readonly #profiles = new Map<string, { revision: string; gone: AbortController }>();

  /** A new desired state. */
  take(profiles: readonly Pick<DesiredProfile, "name" | "revision">[]): void {
    for (const [name, { revision, gone }] of this.#profiles) {
      if (profiles.some((profile) => profile.name === name && profile.revision === revision)) continue;
      this.#profiles.delete(name);
      gone.abort(new NotWanted(name));
    }
    for (const { name, revision } of profiles)
      if (!this.#profiles.has(name)) this.#profiles.set(name, { revision, gone: new AbortController() });
  }

  /** Aborts with {@link NotWanted} when this revision of the profile is wanted no more. */
  signalOf({ name, revision }: Pick<DesiredProfile, "name" | "revision">): AbortSignal {
    const known = this.#profiles.get(name);
    return known?.revision === revision ? known.gone.signal : AbortSignal.abort(new NotWanted(name));
  }
}
