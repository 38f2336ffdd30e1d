import { type ChildProcess, spawn } from "node:child_process";
import { mkdir, open, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { debianProgram, debianPrograms } from "../tools/debian.ts";
import { freePort } from "../tools/free-port.ts";

export type RegistryOptions = {
  /** Folder for its configuration, log and content. What is in it already is served again. */
  dir: string;
  /** HOST or HOST:PORT to listen on; a free port is taken when none is given. */
  address?: string;
  /** An htpasswd file (bcrypt); without one everybody may pull and push. */
  htpasswd?: string;
  /** Files of a certificate and its key: it speaks TLS. */
  tls?: { cert: string; key: string };
};

export type RunningRegistry = AsyncDisposable & {
  /** http://HOST:PORT */
  url: string;
  /** HOST:PORT, as image references begin. */
  host: string;
  pid: number;
  stop(): Promise<void>;
};

/** What serves the folder: the command, where it will answer, and its log. */
export type RegistryCommand = { argv: [string, ...string[]]; host: string; url: string; log: string };

/** Writes a registry's configuration. */
export const prepareRegistry = async (options: RegistryOptions): Promise<RegistryCommand> => {
  const { pkg, path } = debianPrograms["docker-registry"];
  const program = await debianProgram(pkg, path);
  const [name = "127.0.0.1", port] = (options.address ?? "127.0.0.1").split(":");
  const host = `${name}:${port ?? (await freePort(name))}`;
  await mkdir(join(options.dir, "content"), { recursive: true });
  const config = join(options.dir, "config.yml");
  const auth =
    options.htpasswd === undefined ? "" : `auth: { htpasswd: { realm: test, path: ${options.htpasswd} } }\n`;
  await writeFile(
    config,
    `version: 0.1
log: { level: warn, accesslog: { disabled: true } }
storage:
  filesystem: { rootdirectory: ${join(options.dir, "content")} }
  delete: { enabled: true }
http:
  addr: "${host}"
${options.tls === undefined ? "" : `  tls: { certificate: ${options.tls.cert}, key: ${options.tls.key} }\n`}${auth}`,
  );
  return {
    argv: [program, "serve", config],
    host,
    url: `${options.tls === undefined ? "http" : "https"}://${host}`,
    log: join(options.dir, "registry.log"),
  };
};

/** Starts Debian's docker-registry (distribution 2.8) and waits until it answers. It ends with `stop()` or with us. */
export const startRegistry = async (options: RegistryOptions): Promise<RunningRegistry> => {
  const {
    argv: [program, ...args],
    host,
    url,
    log: logPath,
  } = await prepareRegistry(options);
  await using log = await open(logPath, "a");
  const child = spawn(program, args, { cwd: "/", stdio: ["ignore", log.fd, log.fd] });
  const end = (): void => void child.kill("SIGKILL");
  process.on("exit", end);
  const stop = async (): Promise<void> => {
    process.off("exit", end);
    await ended(child);
  };
  try {
    await answers(host, child, logPath);
  } catch (error) {
    await stop();
    throw error;
  }
  return { url, host, pid: child.pid ?? 0, stop, [Symbol.asyncDispose]: stop };
};

const ended = async (child: ChildProcess): Promise<void> => {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exit = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  const hard = setTimeout(() => child.kill("SIGKILL"), 3000);
  await exit;
  clearTimeout(hard);
};

const answers = async (host: string, child: ChildProcess, log: string): Promise<void> => {
  for (let attempt = 0; attempt < 200; attempt++) {
    if (child.exitCode !== null) break;
    // Under TLS too this is HTTP: 400 and 401 are answers of a registry that wants more.
    const response = await fetch(`http://${host}/v2/`, { signal: AbortSignal.timeout(2000) }).catch(
      () => undefined,
    );
    if (response !== undefined && [200, 400, 401].includes(response.status)) return;
    await sleep(50);
  }
  const said = (await readFile(log, "utf8")).trim().split("\n").slice(-5).join("\n");
  throw new RuntimeError("unavailable", `Cannot start the registry at ${host}:\n${said}`);
};
