import { containerd } from "./containerd.ts";
import { crio } from "./crio.ts";
import { docker } from "./docker.ts";
import type { Adapter, EngineKind } from "./engine.ts";

/** The engines that can be told of a handler. */
export const adapters: Record<EngineKind, Adapter> = { containerd, crio, docker };
