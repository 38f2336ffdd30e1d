import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { debianProgram, debianPrograms } from "../tools/debian.ts";
import { freePort } from "../tools/free-port.ts";

export type ForwardProxy = AsyncDisposable & {
  /** HOST:PORT */
  host: string;
  /** What it was asked for since the last call: "GET http://…" or "CONNECT HOST:PORT". */
  asked(): Promise<string[]>;
};

/** Debian's tinyproxy on loopback, which wants this user and password. Its files are in `dir`. */
export const startForwardProxy = async (
  dir: string,
  { user, password }: { user: string; password: string },
): Promise<ForwardProxy> => {
  const { pkg, path } = debianPrograms.tinyproxy;
  const program = await debianProgram(pkg, path);
  const port = await freePort();
  const log = join(dir, "tinyproxy.log");
  const config = join(dir, "tinyproxy.conf");
  await writeFile(log, "");
  await writeFile(
    config,
    [
      `Port ${port}`,
      "Listen 127.0.0.1",
      "Allow 127.0.0.1",
      "Timeout 60",
      "MaxClients 20",
      `BasicAuth ${user} ${password}`,
      `LogFile "${log}"`,
      "LogLevel Connect",
    ].join("\n"),
  );
  const child = spawn(program, ["-d", "-c", config], { stdio: "ignore" });
  child.on("error", () => {});
  const ended = once(child, "exit");
  for (let n = 0; !(await accepts(port)); n++) {
    if (n === 100 || child.exitCode !== null) throw new Error(`Cannot start tinyproxy with ${config}`);
    await sleep(50);
  }
  let seen = 0;
  return {
    host: `127.0.0.1:${port}`,
    asked: async () => {
      const lines = (await readFile(log, "utf8")).match(/Request \(file descriptor \d+\): .*/g) ?? [];
      const fresh = lines.slice(seen);
      seen = lines.length;
      return fresh.map((line) =>
        line.replace(/^Request \(file descriptor \d+\): /, "").replace(/ HTTP\/1\.\d$/, ""),
      );
    },
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await ended;
    },
  };
};

const accepts = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
