import { accessSync, constants, statSync } from "node:fs";
import { join } from "node:path";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import type { Logger } from "pino";
import type { Manifest } from "./bundle.ts";
import type { HostFacts } from "./facts.ts";
import { isVm, kvmProbe, type NodeOfProfile, programRoot, unsupported } from "./files.ts";
import { createGpuCheck } from "./gpu.ts";
import type { Gvisor, Platform } from "./gvisor.ts";
import type { Host } from "./host.ts";
import { vmFacts } from "./kata/facts.ts";
import type { VmFacts } from "./kata/node.ts";
import { choosePlatform, type Trial, tryPlatforms } from "./platform.ts";
import { shimPath } from "./shim.ts";

/** Which walls this node can serve, by what was tried and found on it. */

type Choice = ReturnType<typeof choosePlatform>;
type WallsOptions = { host: Host; hostFacts: HostFacts; bundle: string; manifest: Manifest; log: Logger };

export class Walls {
  readonly #options: WallsOptions;
  #vm: VmFacts;
  /** Of gVisor's platforms, by path of the runsc that tried them, the latest last. */
  readonly #trials = new Map<string, Trial[]>();

  /** gVisor's platform, by profile. */
  readonly #chosen = new Map<string, Platform>();
  readonly #noGpu: ReturnType<typeof createGpuCheck>;

  constructor(options: WallsOptions) {
    this.#options = options;
    this.#vm = options.hostFacts.vm;
    this.#noGpu = createGpuCheck(options.host);
  }

  /** Looks again at what may change while we run: modules are loaded and Kata is installed. */
  async look(profiles: readonly DesiredProfile[]): Promise<void> {
    if (profiles.some(isVm)) await this.#look();
  }

  async #look(): Promise<void> {
    const { host, bundle } = this.#options;
    this.#vm = await vmFacts(host, join(bundle, kvmProbe));
  }

  /** What virtual machines find here, as it was last looked at. */
  get vm(): VmFacts {
    return this.#vm;
  }

  /** Why this node cannot serve the profile whatever is tried, or undefined. */
  refusal(profile: DesiredProfile): string | undefined {
    const { manifest } = this.#options;
    const has = (path: string): boolean => manifest.files.some((file) => file.path === path);
    return unsupported(profile, { has, vm: this.#vm, shim: this.#shimOf(profile) });
  }

  /** What a profile's files say of the node. */
  nodeOf(profile: DesiredProfile): NodeOfProfile {
    return { ...this.#vm, shim: this.#shimOf(profile) };
  }

  /** What gVisor's platforms came to when they were last tried. */
  trials(): readonly Trial[] | undefined {
    return [...this.#trials.values()].at(-1);
  }

  /** What {@link platformOf} last said of a profile of gVisor: its files have it, whatever is found for others since. */
  chosen({ name }: DesiredProfile): Platform | undefined {
    return this.#chosen.get(name);
  }

  /**
   * gVisor's platform for a profile, tried with the program that is in place; `trouble`: why there is none, or none of
   * the GPUs that it wants.
   */
  async platformOf(profile: DesiredProfile, due: boolean, signal: AbortSignal): Promise<Choice> {
    const { gvisor } = profile.handler;
    if (gvisor === undefined) return { platform: "systrap" };
    const { manifest } = this.#options;
    const runsc = join(programRoot(profile, manifest.version), "bin/runsc");
    const choice = await this.#choose(gvisor, runsc, due, signal);
    this.#chosen.set(profile.name, choice.platform);
    const trouble = choice.trouble ?? (await this.#noGpu(runsc, gvisor, signal));
    return trouble === undefined ? choice : { ...choice, trouble };
  }

  async #choose(gvisor: Gvisor, runsc: string, due: boolean, signal: AbortSignal): Promise<Choice> {
    const { host, log } = this.#options;
    const known = this.#trials.get(runsc);
    if (known !== undefined) {
      const choice = choosePlatform(gvisor.platform, known);
      // What did not work is tried again with the profile that asks for it: the program was mended, a device came.
      const works = choice.trouble === undefined && known.some((trial) => trial.works);
      if (works || !due) return choice;
    }
    await this.#look();
    const trials = await tryPlatforms(host, runsc, this.#vm.kvm, signal);
    this.#trials.delete(runsc);
    this.#trials.set(runsc, trials);
    log.info({ runsc, trials }, "gVisor's platforms tried");
    return choosePlatform(gvisor.platform, trials);
  }

  /** Where the shim of a profile of any shim stands: in our bundle, or where the node has it. */
  #shimOf(profile: DesiredProfile): string | undefined {
    if (profile.handler.shim === undefined) return undefined;
    const { host, manifest } = this.#options;
    return shimPath(profile, programRoot(profile, manifest.version), {
      // What an artifact holds is its own affair: the check of the program tells.
      brings: (path) =>
        profile.artifact.image !== undefined || manifest.files.some((file) => file.path === path),
      isProgram: (path) => isProgram(host, path),
    });
  }
}

/** The host has a program of this name that it can run. */
const isProgram = (host: Host, path: string): boolean => {
  try {
    const file = host.at(host.real(path));
    accessSync(file, constants.X_OK);
    return statSync(file).isFile();
  } catch {
    return false;
  }
};
