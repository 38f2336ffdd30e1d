/*
 * Parent of one process that an OCI runtime starts in a container by `exec --detach`. It is the subreaper that the
 * process falls to, so it alone can tell the exit code, and it lets the process own its stdio, which the runtime in
 * the foreground would hold open for as long as any grandchild does. With -t it also receives the terminal.
 *
 *   bulkhead-exec-reaper [-t SOCKET] PIDFILE RUNTIME ARG...
 *
 * Descriptor 3 reports, one line each: `started PID [TERMINAL-FD]`, `exited CODE`, `failed CODE` (the runtime's own
 * log has the reason).
 *
 *   bulkhead-exec-reaper -n KINDS HOSTNAME
 *
 * makes the namespaces of a pod that has a user namespace of its own, which a process with threads cannot: it reports
 * `mapped?`, waits for a byte (its ids are mapped then), makes the namespaces KINDS (of the letters n, i and u: net,
 * ipc, uts), which that user namespace owns, reports `ready`, and holds all of them until descriptor 3 is closed.
 *
 *   bulkhead-exec-reaper -w PATH
 *
 * prints where PATH leads, with links followed and missing directories made: the file system may not answer, and a
 * process that waits for it takes no thread of the daemon. It ends with the daemon.
 *
 *   DIRECTORY/bulkhead-restore ARG... start ID
 *
 * (a link to it by this name) is gVisor's runtime to its shim, which cannot ask for a restore: it runs DIRECTORY/runsc,
 * and as long as there is DIRECTORY/image, `start ID` becomes `restore` of the checkpoint there.
 *
 * cc -Os -static -o bulkhead-exec-reaper reaper.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { REPORT = 3 };

static void report(const char *format, ...) {
  char line[64];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  /* The daemon may be gone: there is nobody left to tell, the process goes on. */
  while (write(REPORT, line, (size_t)length) < 0 && errno == EINTR) {
  }
}

static int fail(const char *what) {
  perror(what);
  report("failed %d\n", 125);
  return 125;
}

static int code_of(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : WIFSIGNALED(status) ? 128 + WTERMSIG(status) : 255;
}

static int listen_at(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  strcpy(address.sun_path, path);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 1) < 0) return -1;
  return fd;
}

/* The pty's master end, sent by the runtime as SCM_RIGHTS; the connection waits in the backlog. */
static int receive_terminal(int listener) {
  int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (connection < 0) return -1;
  char name[4096];
  union {
    struct cmsghdr header;
    char space[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec data = {.iov_base = name, .iov_len = sizeof name};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  ssize_t got;
  do got = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
  while (got < 0 && errno == EINTR);
  close(connection);
  struct cmsghdr *header = got < 0 ? NULL : CMSG_FIRSTHDR(&message);
  if (header == NULL || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) return -1;
  int terminal;
  memcpy(&terminal, CMSG_DATA(header), sizeof terminal);
  return terminal;
}

static pid_t read_pid(const char *path) {
  FILE *file = fopen(path, "re");
  long pid = -1;
  if (file == NULL) return -1;
  if (fscanf(file, "%ld", &pid) != 1) pid = -1;
  fclose(file);
  return (pid_t)pid;
}

static int loopback_up(void) {
  struct ifreq request = {.ifr_name = "lo"};
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request) < 0) return -1;
  request.ifr_flags |= IFF_UP;
  if (ioctl(fd, SIOCSIFFLAGS, &request) < 0) return -1;
  return close(fd);
}

/* 1: a byte came. 0: the other end was closed. */
static int wait_for_byte(void) {
  char byte;
  ssize_t got;
  do got = read(REPORT, &byte, 1);
  while (got < 0 && errno == EINTR);
  return got > 0;
}

static int hold_namespaces(const char *kinds, const char *hostname) {
  int flags = (strchr(kinds, 'n') ? CLONE_NEWNET : 0) | (strchr(kinds, 'i') ? CLONE_NEWIPC : 0) |
              (strchr(kinds, 'u') ? CLONE_NEWUTS : 0);
  /* Should the daemon die before descriptor 3 is closed in it, the kernel closes it. */
  if (unshare(CLONE_NEWUSER) < 0) return fail("unshare user namespace");
  report("mapped?\n");
  if (!wait_for_byte()) return 0;
  /* As its root, so that it owns what the kernel makes with a namespace (the queues' file system). */
  if (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0) return fail("become root of the user namespace");
  if (unshare(flags) < 0) return fail("unshare");
  if ((flags & CLONE_NEWUTS) && sethostname(hostname, strlen(hostname)) < 0) return fail("sethostname");
  if ((flags & CLONE_NEWNET) && loopback_up() < 0) return fail("set up loopback");
  report("ready\n");
  while (wait_for_byte()) {
  }
  return 0;
}

static int make_directories(char *path) {
  for (char *slash = path + 1;; *slash++ = '/') {
    slash = strchrnul(slash, '/');
    int last = *slash == '\0';
    *slash = '\0';
    if (mkdir(path, 0755) < 0 && errno != EEXIST) return -1;
    if (last) return 0;
  }
}

static int where(char *path) {
  char found[PATH_MAX];
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  if (realpath(path, found) == NULL &&
      (errno != ENOENT || make_directories(path) < 0 || realpath(path, found) == NULL)) {
    perror(NULL);
    return 1;
  }
  return fputs(found, stdout) < 0 || fflush(stdout) != 0;
}

static int start_or_restore(int argc, char **argv, int directory) {
  char program[PATH_MAX], image[PATH_MAX];
  if (snprintf(program, sizeof program, "%.*srunsc", directory, argv[0]) >= (int)sizeof program ||
      snprintf(image, sizeof image, "%.*simage", directory, argv[0]) >= (int)sizeof image)
    return 125;
  if (argc > 2 && strcmp(argv[argc - 2], "start") == 0 && access(image, F_OK) == 0) {
    char **restore = calloc((size_t)argc + 4, sizeof *restore);
    if (restore == NULL) return 125;
    int count = 0;
    for (int i = 0; i < argc - 2; i++) restore[count++] = argv[i];
    restore[count++] = "restore";
    restore[count++] = "--detach";
    restore[count++] = "--image-path";
    restore[count++] = image;
    restore[count++] = argv[argc - 1];
    argv = restore;
  }
  argv[0] = program;
  execv(program, argv);
  perror(program);
  return 127;
}

int main(int argc, char **argv) {
  const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
  if (slash != NULL && strcmp(slash + 1, "bulkhead-restore") == 0)
    return start_or_restore(argc, argv, (int)(slash + 1 - argv[0]));
  if (argc == 4 && strcmp(argv[1], "-n") == 0) {
    fcntl(REPORT, F_SETFD, FD_CLOEXEC);
    return hold_namespaces(argv[2], argv[3]);
  }
  if (argc == 3 && strcmp(argv[1], "-w") == 0) return where(argv[2]);
  const char *socket_path = NULL;
  int listener = -1, terminal = -1, at = 1;
  if (argc > 2 && strcmp(argv[1], "-t") == 0) {
    socket_path = argv[2];
    at = 3;
  }
  if (argc - at < 2) return 125;
  const char *pid_file = argv[at];
  fcntl(REPORT, F_SETFD, FD_CLOEXEC);
  signal(SIGPIPE, SIG_IGN);
  if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0) return fail("prctl");
  if (socket_path != NULL && (listener = listen_at(socket_path)) < 0) return fail(socket_path);

  pid_t runtime = fork();
  if (runtime < 0) return fail("fork");
  if (runtime == 0) {
    signal(SIGPIPE, SIG_DFL);
    execv(argv[at + 1], argv + at + 1);
    perror(argv[at + 1]);
    _exit(127);
  }

  /* The process may be over before the runtime is: what is reaped meanwhile is remembered by its pid. */
  enum { REMEMBERED = 64 };
  struct {
    pid_t pid;
    int status;
  } early[REMEMBERED];
  int count = 0, status = 0;
  for (;;) {
    if (listener >= 0 && terminal < 0) {
      struct pollfd ready = {.fd = listener, .events = POLLIN};
      if (poll(&ready, 1, 20) > 0) terminal = receive_terminal(listener);
    }
    pid_t pid = waitpid(-1, &status, listener >= 0 && terminal < 0 ? WNOHANG : 0);
    if (pid == runtime) break;
    if (pid > 0) {
      early[count % REMEMBERED].pid = pid;
      early[count++ % REMEMBERED].status = status;
    }
    if (pid < 0 && errno != EINTR) return fail("waitpid");
  }
  if (socket_path != NULL) unlink(socket_path);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    report("failed %d\n", code_of(status));
    return 125;
  }
  pid_t process = read_pid(pid_file);
  if (process <= 0) return fail(pid_file);
  if (listener >= 0) {
    if (terminal < 0) terminal = receive_terminal(listener);
    if (terminal < 0) return fail("terminal");
    close(listener);
    report("started %d %d\n", process, terminal);
    /* The daemon takes a duplicate of the terminal from here and says so, or is gone. */
    char taken;
    while (read(REPORT, &taken, 1) < 0 && errno == EINTR) {
    }
    close(terminal);
  } else {
    report("started %d\n", process);
  }

  /* Holding these would keep the client's pipes open after the process closed them. */
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd < 3 && null >= 0; fd++) dup2(null, fd);

  for (int i = 0; i < count && i < REMEMBERED; i++)
    if (early[i].pid == process) {
      report("exited %d\n", code_of(early[i].status));
      return 0;
    }
  for (;;) {
    pid_t pid = waitpid(-1, &status, 0);
    if (pid == process) break;
    if (pid < 0 && errno != EINTR) return fail("waitpid");
  }
  report("exited %d\n", code_of(status));
  return 0;
}
