import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";

/** The work was on a revision that is wanted no more. */
export class NotWanted extends Error {
  constructor(name: string) {
    super(`Profile "${name}" is no longer wanted as it was`);
    this.name = "NotWanted";
  }
}

/** The work is wanted as before, but something else of this node is not: it is done again after that. */
export class Overtaken extends Error {
  constructor() {
    super("Something else is wanted of this node");
    this.name = "Overtaken";
  }
}

/** What a canary gets to come through before a new desired state is turned to, in milliseconds. */
const graceMs = 20_000;

/**
 * Which revision of each profile is wanted right now. A canary may take minutes: one of another revision ends at once, and
 * the others end when they hold up what is wanted instead.
 */
export class Wanted {
  readonly #profiles = new Map<string, { revision: string; gone: AbortController }>();
  #pass = new AbortController();

  /** A new desired state. */
  take(profiles: readonly Pick<DesiredProfile, "name" | "revision">[]): void {
    for (const [name, { revision, gone }] of this.#profiles) {
      if (profiles.some((profile) => profile.name === name && profile.revision === revision)) continue;
      this.#profiles.delete(name);
      gone.abort(new NotWanted(name));
    }
    for (const { name, revision } of profiles)
      if (!this.#profiles.has(name)) this.#profiles.set(name, { revision, gone: new AbortController() });
    const pass = this.#pass;
    setTimeout(() => pass.abort(new Overtaken()), graceMs).unref();
  }

  /** A pass begins, with the desired state that was taken last. */
  begin(): void {
    this.#pass = new AbortController();
  }

  /**
   * For work of the pass that is under way: aborts with {@link NotWanted} when this revision of the profile is wanted no
   * more, with {@link Overtaken} some time after anything else is wanted.
   */
  signalOf({ name, revision }: Pick<DesiredProfile, "name" | "revision">): AbortSignal {
    const known = this.#profiles.get(name);
    if (known?.revision !== revision) return AbortSignal.abort(new NotWanted(name));
    return AbortSignal.any([known.gone.signal, this.#pass.signal]);
  }
}
