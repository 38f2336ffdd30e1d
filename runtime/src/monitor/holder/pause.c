/*
 * First process of a shared PID namespace: reaps what is orphaned in it and ends on SIGTERM or SIGINT.
 * As PID 1 it gets only the signals that it handles. cc -Os -static -o bulkhead-pause pause.c
 */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signo) {
  (void)signo;
  _exit(0);
}

static void reap(int signo) {
  (void)signo;
  while (waitpid(-1, 0, WNOHANG) > 0) {
  }
}

int main(void) {
  struct sigaction on_end = {.sa_handler = end};
  struct sigaction on_child = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
  if (sigaction(SIGTERM, &on_end, 0) < 0 || sigaction(SIGINT, &on_end, 0) < 0 || sigaction(SIGCHLD, &on_child, 0) < 0)
    return 1;
  for (;;) pause();
}
