import type { Kernel } from "./kernel.ts";

/** What a virtual machine is made of, by the architecture of its processor. */
export type Guest = {
  /** QEMU's program, and what it emulates. */
  qemu: readonly [string, ...string[]];
  /** The kernel's name of the serial line. */
  console: string;
  kernel(signal: AbortSignal): Promise<Kernel>;
  /** A root filesystem of Debian with systemd. */
  rootfs(signal: AbortSignal): Promise<string>;
  /** Puts Node.js, conmon and what else the root filesystem has not into `root`. */
  addPrograms(root: string, kernel: Kernel, signal: AbortSignal): Promise<void>;
  /** One of the pinned programs, by name. */
  tool(name: string): string;
  busybox: string;
  /** The package of koffi's native part: its name and where it lies. */
  koffi: { name: string; directory: string };
  cc: string;
};
