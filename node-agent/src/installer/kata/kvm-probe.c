/*
 * Boots a guest of a few instructions: whether KVM runs here is seen by letting it run, for /dev/kvm may be there and
 * refuse, hang, or know no guests but its own. The guest does what a kernel does first (on x86-64, with paging in long
 * mode: reads and writes a model-specific register, loads its page tables, takes a trap), then writes one byte where
 * nothing is, which the host sees.
 *
 *   bulkhead-kvm-probe /dev/kvm
 *
 * Prints one line: `runs`, or what failed and why. Exit code 0 for `runs`, 1 otherwise; killed by SIGALRM where the
 * guest hangs.
 *
 * cc -Os -static -o bulkhead-kvm-probe kvm-probe.c
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { DEADLINE_SECONDS = 5, MEMORY = 0x10000, CODE = 0x1000, BYTE = 42 };

static int failed(const char *what) {
  printf("%s: %s\n", what, strerror(errno));
  return 1;
}

#if defined(__x86_64__)
static const uint8_t guest[] = {
    0xb8, 0x01, 0x00, 0x00, 0x00, /* mov $1, %eax */
    0x0f, 0xa2,                   /* cpuid */
    0xb9, 0x80, 0x00, 0x00, 0xc0, /* mov $0xc0000080, %ecx: EFER */
    0x0f, 0x32, 0x0f, 0x30,       /* rdmsr; wrmsr */
    0x0f, 0x20, 0xd8,             /* mov %cr3, %rax */
    0x0f, 0x22, 0xd8,             /* mov %rax, %cr3 */
    0x31, 0xdb,                   /* xor %ebx, %ebx */
    0xcc,                         /* int3: the trap sets %bl */
    0x88, 0xd8,                   /* mov %bl, %al */
    0xe6, 0x10,                   /* out %al, $0x10 */
    0xf4,                         /* hlt */
};
static const uint8_t trap[] = {0xb3, BYTE, 0x48, 0xcf}; /* mov $42, %bl; iretq */

enum { TRAP = 0x1100, TABLES = 0x2000, GDT = 0x5000, IDT = 0x6000, STACK = 0x8000, MAX_CPUID = 256 };

static const char *prepare(int kvm, int vm, int cpu, char *memory) {
  (void)vm;
  memcpy(memory + TRAP, trap, sizeof trap);
  /* The first 2 MiB, mapped onto themselves. */
  uint64_t *tables = (uint64_t *)(memory + TABLES);
  tables[0] = (TABLES + 0x1000) | 3;
  tables[512] = (TABLES + 0x2000) | 3;
  tables[1024] = 0x83;
  uint64_t *gdt = (uint64_t *)(memory + GDT);
  gdt[1] = 0x00af9b000000ffff;
  gdt[2] = 0x00cf93000000ffff;
  uint64_t *idt = (uint64_t *)(memory + IDT);
  idt[2 * 3] = (uint64_t)TRAP | (uint64_t)8 << 16 | (uint64_t)0x8e << 40;

  static union {
    struct kvm_cpuid2 head;
    char room[sizeof(struct kvm_cpuid2) + MAX_CPUID * sizeof(struct kvm_cpuid_entry2)];
  } cpuid = {.head = {.nent = MAX_CPUID}};
  if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) < 0) return "KVM_GET_SUPPORTED_CPUID";
  if (ioctl(cpu, KVM_SET_CPUID2, &cpuid) < 0) return "KVM_SET_CPUID2";

  struct kvm_sregs special;
  if (ioctl(cpu, KVM_GET_SREGS, &special) < 0) return "KVM_GET_SREGS";
  struct kvm_segment code = {
      .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
  struct kvm_segment data = {
      .limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
  special.cs = code;
  special.ds = special.es = special.fs = special.gs = special.ss = data;
  special.gdt.base = GDT;
  special.gdt.limit = 3 * 8 - 1;
  special.idt.base = IDT;
  special.idt.limit = 4 * 16 - 1;
  special.cr3 = TABLES;
  special.cr4 = 0x20;        /* PAE */
  special.cr0 = 0x80050033;  /* PG, AM, WP, NE, ET, MP, PE */
  special.efer = 0x500;      /* LMA, LME */
  if (ioctl(cpu, KVM_SET_SREGS, &special) < 0) return "KVM_SET_SREGS";
  struct kvm_regs registers = {.rip = CODE, .rsp = STACK, .rflags = 2};
  if (ioctl(cpu, KVM_SET_REGS, &registers) < 0) return "KVM_SET_REGS";
  return NULL;
}

static int spoke(const struct kvm_run *run) {
  return run->exit_reason == KVM_EXIT_IO && run->io.port == 0x10 && run->io.direction == KVM_EXIT_IO_OUT &&
         ((const uint8_t *)run)[run->io.data_offset] == BYTE;
}
#elif defined(__aarch64__)
/* mov w0, #42; mov x1, #0x20000; strb w0, [x1] */
static const uint32_t guest[] = {0x52800540, 0xd2a00041, 0x39000020};

static const char *prepare(int kvm, int vm, int cpu, char *memory) {
  (void)kvm;
  (void)memory;
  struct kvm_vcpu_init init;
  if (ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init) < 0) return "KVM_ARM_PREFERRED_TARGET";
  if (ioctl(cpu, KVM_ARM_VCPU_INIT, &init) < 0) return "KVM_ARM_VCPU_INIT";
  uint64_t start = CODE;
  struct kvm_one_reg counter = {
      .id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(regs.pc),
      .addr = (uintptr_t)&start,
  };
  if (ioctl(cpu, KVM_SET_ONE_REG, &counter) < 0) return "KVM_SET_ONE_REG";
  return NULL;
}

static int spoke(const struct kvm_run *run) {
  return run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr == 0x20000 && run->mmio.is_write &&
         run->mmio.data[0] == BYTE;
}
#else
#error "no guest for this architecture"
#endif

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  alarm(DEADLINE_SECONDS);
  int kvm = open(argv[1], O_RDWR | O_CLOEXEC);
  if (kvm < 0) return failed(argv[1]);
  if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) return failed("KVM_GET_API_VERSION");
  int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  if (vm < 0) return failed("KVM_CREATE_VM");
  char *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return failed("mmap");
  memcpy(memory + CODE, guest, sizeof guest);
  struct kvm_userspace_memory_region region = {.memory_size = MEMORY, .userspace_addr = (uintptr_t)memory};
  if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0) return failed("KVM_SET_USER_MEMORY_REGION");
  int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  if (cpu < 0) return failed("KVM_CREATE_VCPU");
  int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  if (size < (int)sizeof(struct kvm_run)) return failed("KVM_GET_VCPU_MMAP_SIZE");
  struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
  if (run == MAP_FAILED) return failed("mmap");
  const char *refused = prepare(kvm, vm, cpu, memory);
  if (refused) return failed(refused);
  while (ioctl(cpu, KVM_RUN, 0) < 0)
    if (errno != EINTR && errno != EAGAIN) return failed("KVM_RUN");
  if (!spoke(run)) {
    printf("the guest ended with exit reason %u before it had spoken\n", run->exit_reason);
    return 1;
  }
  puts("runs");
  return 0;
}
