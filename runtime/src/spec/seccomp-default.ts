/**
 * The seccomp profile that RuntimeDefault stands for (config-linux.md, "Seccomp").
 *
 * Three groups. *Allowed*: what ordinary programs use and what only touches the caller's own namespaces.
 * *Guarded*: refused with EPERM unless the container holds the capability that the kernel itself would ask for.
 * *Refused*: EPERM always, because the call reaches the host or widens the kernel's surface. Anything else,
 * also what a future kernel adds, answers ENOSYS, so that libc falls back to an older call.
 */

const EPERM = 1;
const ENOSYS = 38;

/** Files, memory, processes, signals, sockets, time: the ordinary life of a process. */
const allowed: readonly string[] = `
  accept accept4 access alarm arch_prctl bind brk capget capset chdir chmod chown chown32 clock_getres
  clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range
  connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait
  epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2
  fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl
  fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs
  fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
  futimesat getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups
  getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32
  getresuid getresuid32 getrlimit get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid
  gettimeofday getuid getuid32 getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel
  ioctl io_destroy io_getevents io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc
  kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat
  listen listxattr llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack
  membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2
  modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
  mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
  name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe
  pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
  process_mrelease pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readdir readlink
  readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr rename renameat
  renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
  rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr
  sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
  sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
  seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg
  sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid
  setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit
  set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32 setxattr shmat shmctl shmdt
  shmget shutdown sigaction sigaltstack signal signalfd signalfd4 sigpending sigprocmask sigreturn sigsuspend
  socketcall socketpair splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range
  sync_file_range2 arm_sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun
  timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64
  timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat utime
  utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
  breakpoint cacheflush set_tls
`
  .trim()
  .split(/\s+/);

/** Calls that the kernel grants by capability: allowed when the container was given one of these. */
const guarded: readonly { capabilities: readonly string[]; names: readonly string[]; why: string }[] = [
  {
    capabilities: ["CAP_SYS_ADMIN"],
    names: [
      "bpf",
      "clone",
      "clone3",
      "fanotify_init",
      "fsconfig",
      "fsmount",
      "fsopen",
      "fspick",
      "lookup_dcookie",
      "mount",
      "mount_setattr",
      "move_mount",
      "open_tree",
      "perf_event_open",
      "quotactl",
      "quotactl_fd",
      "setdomainname",
      "sethostname",
      "setns",
      "syslog",
      "umount",
      "umount2",
      "unshare",
    ],
    why: "namespaces and mounts are how one leaves a container",
  },
  { capabilities: ["CAP_SYS_CHROOT"], names: ["chroot"], why: "another root hides nothing from root" },
  { capabilities: ["CAP_BPF"], names: ["bpf"], why: "programs in the kernel" },
  { capabilities: ["CAP_PERFMON"], names: ["perf_event_open"], why: "watches other processes" },
  { capabilities: ["CAP_SYSLOG"], names: ["syslog"], why: "the host's kernel log" },
  {
    capabilities: ["CAP_DAC_READ_SEARCH"],
    names: ["open_by_handle_at"],
    why: "opens any inode of a file system, past the mount (the shocker escape)",
  },
  {
    capabilities: ["CAP_SYS_MODULE"],
    names: ["delete_module", "finit_module", "init_module"],
    why: "code in the host's kernel",
  },
  { capabilities: ["CAP_SYS_PACCT"], names: ["acct"], why: "the host's accounting file" },
  {
    capabilities: ["CAP_SYS_PTRACE"],
    names: ["kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev"],
    why: "other processes' memory and files",
  },
  { capabilities: ["CAP_SYS_RAWIO"], names: ["ioperm", "iopl"], why: "I/O ports" },
  {
    capabilities: ["CAP_SYS_TIME"],
    names: [
      "adjtimex",
      "clock_adjtime",
      "clock_adjtime64",
      "clock_settime",
      "clock_settime64",
      "settimeofday",
      "stime",
    ],
    why: "the clock is the host's",
  },
  { capabilities: ["CAP_SYS_TTY_CONFIG"], names: ["vhangup"], why: "hangs up terminals" },
  {
    capabilities: ["CAP_SYS_NICE"],
    names: [
      "get_mempolicy",
      "mbind",
      "migrate_pages",
      "move_pages",
      "set_mempolicy",
      "set_mempolicy_home_node",
    ],
    why: "places memory of other processes",
  },
  { capabilities: ["CAP_SYS_BOOT"], names: ["reboot"], why: "stops the host" },
];

/** Never, whatever capabilities are held. */
const refused: readonly { names: readonly string[]; why: string }[] = [
  { names: ["kexec_load", "kexec_file_load"], why: "boots another kernel" },
  { names: ["add_key", "request_key", "keyctl"], why: "keyrings know no namespaces" },
  { names: ["swapon", "swapoff"], why: "the host's swap" },
  { names: ["pivot_root"], why: "only a container's start needs it" },
  { names: ["userfaultfd"], why: "stops the kernel half-way, the tool of many exploits" },
  {
    names: ["io_uring_setup", "io_uring_enter", "io_uring_register"],
    why: "does what this profile refuses to system calls, and has a long list of escapes",
  },
  { names: ["vm86", "vm86old"], why: "real mode" },
  {
    names: [
      "nfsservctl",
      "sysfs",
      "_sysctl",
      "uselib",
      "ustat",
      "create_module",
      "get_kernel_syms",
      "query_module",
    ],
    why: "obsolete",
  },
];

/** CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET. */
const cloneNamespaceFlags = 0x7e020000;
const AF_VSOCK = 40;
/** personality(2): default, short ints, 32 bit, and both; 0xffffffff asks. */
const personalities = [0x0, 0x8, 0x20000, 0x20008, 0xffffffff];

type Rule = {
  names: string[];
  action: string;
  errnoRet?: number;
  args?: { index: number; value: number; valueTwo?: number; op: string }[];
};

const architectures: Record<string, readonly string[]> = {
  x64: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
  arm64: ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
};

/** The profile for a container with these bounding capabilities on a machine of this architecture (as process.arch says). */
export const defaultSeccomp = (capabilities: readonly string[], arch: string): object => {
  const held = guarded.filter((group) => group.capabilities.some((each) => capabilities.includes(each)));
  const granted = new Set(held.flatMap((group) => group.names));
  const denied = [
    ...refused.flatMap((group) => group.names),
    // clone is allowed without namespace flags; clone3 hides its flags in memory, so it is ENOSYS by default.
    ...guarded.flatMap((group) => group.names).filter((name) => name !== "clone" && name !== "clone3"),
  ].filter((name) => !granted.has(name));
  const rules: Rule[] = [
    { names: [...allowed, ...granted], action: "SCMP_ACT_ALLOW" },
    { names: [...new Set(denied)], action: "SCMP_ACT_ERRNO", errnoRet: EPERM },
    ...personalities.map(
      (value): Rule => ({
        names: ["personality"],
        action: "SCMP_ACT_ALLOW",
        args: [{ index: 0, value, op: "SCMP_CMP_EQ" }],
      }),
    ),
    // A vsock reaches the hypervisor, whatever network the pod has.
    {
      names: ["socket"],
      action: "SCMP_ACT_ALLOW",
      args: [{ index: 0, value: AF_VSOCK, op: "SCMP_CMP_NE" }],
    },
  ];
  if (!granted.has("clone"))
    rules.push({
      names: ["clone"],
      action: "SCMP_ACT_ALLOW",
      args: [{ index: 0, value: cloneNamespaceFlags, valueTwo: 0, op: "SCMP_CMP_MASKED_EQ" }],
    });
  return {
    defaultAction: "SCMP_ACT_ERRNO",
    defaultErrnoRet: ENOSYS,
    architectures: architectures[arch] ?? [],
    syscalls: rules,
  };
};
