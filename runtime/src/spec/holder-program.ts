import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/**
 * The holder as a program: a static ELF executable of some 200 bytes, written out here because no node is sure
 * to have a static binary. It does what the first process of a PID namespace must: it ignores SIGCHLD, so that
 * the kernel reaps every orphan that it inherits (wait(2), "Linux notes"), and sleeps for ever. The kernel
 * discards signals that a namespace's first process has no handler for; only SIGKILL from outside ends it.
 */
export const holderProgram = (arch: string): Uint8Array => {
  const machine = machines[arch];
  if (!machine)
    throw new RuntimeError("unimplemented", `Cannot make the pod's holder: no program for ${arch}`);
  const headers = 64 + 56;
  const action = headers + machine.code.length;
  const size = action + 32;
  const image = new DataView(new ArrayBuffer(size));
  const base = 0x400000n;
  const little = true;
  // ELF header: 64 bit, little endian, System V.
  image.setUint32(0, 0x7f454c46);
  image.setUint32(4, 0x02010100);
  image.setUint16(16, 2, little);
  image.setUint16(18, machine.elf, little);
  image.setUint32(20, 1, little);
  image.setBigUint64(24, base + BigInt(headers), little);
  image.setBigUint64(32, 64n, little);
  image.setUint16(52, 64, little);
  image.setUint16(54, 56, little);
  image.setUint16(56, 1, little);
  image.setUint16(58, 64, little);
  // One segment, the whole file, readable and executable.
  image.setUint32(64, 1, little);
  image.setUint32(68, 5, little);
  image.setBigUint64(80, base, little);
  image.setBigUint64(88, base, little);
  image.setBigUint64(96, BigInt(size), little);
  image.setBigUint64(104, BigInt(size), little);
  image.setBigUint64(112, 0x1000n, little);
  new Uint8Array(image.buffer).set(machine.code, headers);
  // struct sigaction of the kernel: the handler SIG_IGN, no flags, no restorer, an empty mask.
  image.setBigUint64(action, 1n, little);
  return new Uint8Array(image.buffer);
};

const words = (...code: number[]): number[] =>
  code.flatMap((word) => [word & 0xff, (word >>> 8) & 0xff, (word >>> 16) & 0xff, word >>> 24]);

/** Machine code by process.arch; the action stands right behind it. */
const machines: Record<string, { elf: number; code: readonly number[] } | undefined> = {
  x64: {
    elf: 62,
    code: [
      ...[0xb8, 13, 0, 0, 0], // mov eax, rt_sigaction
      ...[0xbf, 17, 0, 0, 0], // mov edi, SIGCHLD
      ...[0x48, 0x8d, 0x35, 23, 0, 0, 0], // lea rsi, [rip+23]: the action
      ...[0x31, 0xd2], // xor edx, edx
      ...[0x41, 0xba, 8, 0, 0, 0], // mov r10d, 8
      ...[0x0f, 0x05], // syscall
      ...[0xb8, 34, 0, 0, 0], // sleep: mov eax, pause
      ...[0x0f, 0x05], // syscall
      ...[0xeb, 0xf7], // jmp sleep
      ...[0x90, 0x90, 0x90, 0x90],
    ],
  },
  arm64: {
    elf: 183,
    code: words(
      0xd2800220, // mov x0, SIGCHLD
      0x10000181, // adr x1, the action
      0xd2800002, // mov x2, 0
      0xd2800103, // mov x3, 8
      0xd28010c8, // mov x8, rt_sigaction
      0xd4000001, // svc
      0xd2800000, // sleep: mov x0, 0
      0xd2800001, // mov x1, 0
      0xd2800003, // mov x3, 0
      0xd2800928, // mov x8, ppoll; x2 is 0: no timeout
      0xd4000001, // svc
      0x17fffffb, // b sleep
      0xd503201f, // nop
    ),
  },
};
