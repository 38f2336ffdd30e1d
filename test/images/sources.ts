/** The sandbox of engines that need a process per pod: waits, reaps what is left to it, ends on SIGTERM. */
export const pauseSource = `#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void leave(int signo) { (void)signo; _exit(0); }
static void reap(int signo) { (void)signo; while (waitpid(-1, 0, WNOHANG) > 0); }

int main(void) {
  struct sigaction on_end = {.sa_handler = leave}, on_child = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
  sigaction(SIGINT, &on_end, 0);
  sigaction(SIGTERM, &on_end, 0);
  sigaction(SIGCHLD, &on_child, 0);
  for (;;) pause();
}
`;

/**
 * sh of the e2e images: busybox's, whose words specs compare, and bash where a variable has a name that no shell can say
 * (data-1), which busybox's drops and bash hands on.
 */
export const shellSource = `#include <ctype.h>
#include <unistd.h>

extern char **environ;

static int sayable(const char *name) {
  if (!isalpha((unsigned char)*name) && *name != '_') return 0;
  while (isalnum((unsigned char)*name) || *name == '_') name++;
  return *name == '=';
}

int main(int argc, char **argv) {
  (void)argc;
  for (char **each = environ; *each; each++)
    if (!sayable(*each)) execv("/bin/bash", argv);
  execv("/bin/busybox", argv);
  return 127;
}
`;

/** Says who it is; installed setuid root, so that no_new_privs shows. */
export const nonewprivsSource = `#include <stdio.h>
#include <unistd.h>

int main(void) {
  printf("Effective uid: %d\\n", geteuid());
  return 0;
}
`;

/** nginx in the foreground with its pages on a port; it runs as root with workers as nobody. */
export const nginxConfig = (port: number): string => `user nobody nogroup;
worker_processes 1;
pid /var/run/nginx.pid;
error_log stderr notice;
events { worker_connections 256; }
http {
  access_log /dev/stdout;
  types { text/html html; }
  server {
    listen ${port};
    listen [::]:${port};
    location / { root /usr/share/nginx/html; index index.html; }
  }
}
`;

/**
 * Apache in the foreground; without a ServerName it begins its log with its own name. The prefork module makes no
 * threads, whose end would load libgcc_s.
 */
export const httpdConfig = `ServerRoot /usr/local/apache2
LoadModule mpm_prefork_module modules/mod_mpm_prefork.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule dir_module modules/mod_dir.so
Listen 80
User www-data
Group www-data
PidFile /var/run/httpd.pid
DefaultRuntimeDir /var/run
ErrorLog /proc/self/fd/2
LogLevel notice
CustomLog /proc/self/fd/1 "%h %t \\"%r\\" %>s %b"
DocumentRoot /usr/local/apache2/htdocs
DirectoryIndex index.html
`;
