import { once } from "node:events";
import { lstatSync, readlinkSync } from "node:fs";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { startProgram } from "./start-program.ts";

/** The host as the installer reaches it: its files below a root, its programs in its namespaces. */
export type Host = {
  /** The host's path as one of ours. Symbolic links are resolved as the host resolves them. */
  at(path: string): string;
  /** The host's own name of `path`, with a link in the last component followed too. */
  real(path: string): string;
  /** Runs a program of the host with the host's namespaces and root. */
  run(argv: string[], options: RunOptions): Promise<Output>;
  /** The body of an HTTP GET made in the host's network namespace, where 127.0.0.1 is the host's. */
  fetch(url: string, options: RunOptions): Promise<Output>;
  /**
   * Serves the image of an OCI layout, a directory of ours, as a registry on the host's loopback interface until it
   * is disposed of.
   */
  serveLayout(directory: string, signal: AbortSignal): Promise<{ port: number } & AsyncDisposable>;
};

export type RunOptions = { signal: AbortSignal; timeoutMs?: number };
export type Output = { code: number; stdout: string; stderr: string };

/** A process of its own, because a namespace is entered by processes: prints the body, or fails with the reason. */
const getProgram = `require("node:http")
  .get(process.argv[1], { timeout: 3000 }, (response) => {
    response.pipe(process.stdout);
    if (response.statusCode !== 200) process.exitCode = 1;
  })
  .on("timeout", function () { this.destroy(new Error("no answer")); })
  .on("error", (error) => { console.error(error.message); process.exitCode = 1; });`;

/**
 * What an engine asks of a registry (OCI distribution 1.1, pull): manifests and blobs, both by digest. Prints its port.
 * It ends with the installer, whose end of the pipe it reads.
 */
const registryProgram = `const { createReadStream, statSync, readFileSync } = require("node:fs");
  const blob = (digest) => process.argv[1] + "/blobs/sha256/" + digest;
  require("node:http")
    .createServer((request, response) => {
      const [, kind, digest] = /^\\/v2\\/[a-z/]+\\/(manifests|blobs)\\/sha256:([0-9a-f]{64})$/.exec(request.url) ?? [];
      if (request.url === "/v2/") return response.end("{}");
      const size = digest && statSync(blob(digest), { throwIfNoEntry: false })?.size;
      if (size === undefined) return response.writeHead(404).end();
      const type = kind === "blobs" ? "application/octet-stream" : JSON.parse(readFileSync(blob(digest), "utf8")).mediaType;
      response.writeHead(200, { "content-type": type, "content-length": size, "docker-content-digest": "sha256:" + digest });
      if (request.method === "HEAD") return response.end();
      createReadStream(blob(digest)).on("error", () => response.destroy()).pipe(response);
    })
    .listen(0, "127.0.0.1", function () { console.log(this.address().port); });
  process.stdin.on("end", () => process.exit()).resume();`;

/** The real host: mounted at `root`, its first process visible as 1 (hostPID). */
export const mountedHost = (root: string, busybox: string): Host => ({
  at: (path) => resolveIn(root, path),
  real: (path) => realIn(root, path),
  run: (argv, options) =>
    execute([busybox, "nsenter", "-t", "1", "-m", "-u", "-i", "-n", "-p", "--", ...argv], options),
  fetch: (url, options) =>
    execute([busybox, "nsenter", "-t", "1", "-n", "--", process.execPath, "-e", getProgram, url], options),
  serveLayout: async (directory, signal) => {
    const argv = ["nsenter", "-t", "1", "-n", "--", process.execPath, "-e", registryProgram, directory];
    const child = startProgram(busybox, argv, { stdio: ["pipe", "pipe", "inherit"], cwd: "/" });
    const ended = once(child, "close");
    const server = {
      port: 0,
      [Symbol.asyncDispose]: async () => {
        child.kill("SIGKILL");
        await ended;
      },
    };
    try {
      const soon = AbortSignal.any([signal, AbortSignal.timeout(10_000)]);
      const [line] = (await once(child.stdout, "data", { signal: soon })) as [Buffer];
      server.port = Number(line.toString());
      return server;
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
  },
});

/** Resolves `path` below `root`, following links as if root were /. The last component need not exist. */
export function resolveIn(root: string, path: string): string {
  const base = root.replace(/\/+$/, "");
  let links = 0;
  const walk = (parts: string[], done: string[]): string[] => {
    for (let i = 0; i < parts.length; i++) {
      const part = parts[i] ?? "";
      if (part === "" || part === ".") continue;
      if (part === "..") {
        done.pop();
        continue;
      }
      const here = [...done, part];
      // The last component is what the caller acts on: a link there is replaced or read, not followed.
      const last = parts.slice(i + 1).every((rest) => rest === "" || rest === ".");
      const target = last ? undefined : linkTarget(`${base}/${here.join("/")}`);
      if (target === undefined) {
        done = here;
        continue;
      }
      if (++links > 40)
        throw new RuntimeError("failed-precondition", `Cannot resolve "${path}": too many links`);
      const rest = [...target.split("/"), ...parts.slice(i + 1)];
      return walk(rest, target.startsWith("/") ? [] : done);
    }
    return done;
  };
  return `${base}/${walk(path.split("/"), []).join("/")}`;
}

/** The name below `root` that `path` finally stands for, as seen from `root`. */
export function realIn(root: string, path: string): string {
  const base = root.replace(/\/+$/, "");
  // A component after the last makes the last one an ordinary one, which is followed.
  const at = resolveIn(root, `${path}/-`);
  return at.slice(base.length, -"/-".length) || "/";
}

function linkTarget(path: string): string | undefined {
  return lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() ? readlinkSync(path) : undefined;
}

/** Runs a program to its end. Its process group is killed when the signal aborts or the time is over. */
export function execute(argv: string[], { signal, timeoutMs = 30_000 }: RunOptions): Promise<Output> {
  const [file = "", ...args] = argv;
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const child = startProgram(file, args, { stdio: ["ignore", "pipe", "pipe"], detached: true, cwd: "/" });
    const output = { stdout: "", stderr: "" };
    for (const name of ["stdout", "stderr"] as const) {
      child[name].setEncoding("utf8").on("data", (chunk: string) => {
        // A program's words go into messages and logs: bounded.
        if (output[name].length < 1 << 20) output[name] += chunk;
      });
    }
    let why: RuntimeError | undefined;
    const kill = (error: RuntimeError) => () => {
      why ??= error;
      try {
        if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
      } catch {
        // It ended meanwhile.
      }
    };
    const cancel = kill(new RuntimeError("cancelled", `"${argv.join(" ")}" was cancelled`));
    const late = kill(
      new RuntimeError("deadline-exceeded", `"${argv.join(" ")}" did not end in ${timeoutMs} ms`),
    );
    const timer = setTimeout(late, timeoutMs);
    signal.addEventListener("abort", cancel, { once: true });
    const settle = (): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", cancel);
    };
    child.on("error", (error) => {
      settle();
      reject(new RuntimeError("internal", `Cannot run "${file}": ${messageOf(error)}`, { cause: error }));
    });
    child.on("close", (code, signo) => {
      settle();
      if (why !== undefined) reject(why);
      else resolve({ code: code ?? (signo === null ? 255 : 128), ...output });
    });
  });
}

/** Like {@link Host.run}, but a code other than 0 is an error that says what the program said. */
export async function must(output: Promise<Output>, what: string): Promise<string> {
  const { code, stdout, stderr } = await output;
  if (code !== 0) {
    const said = (stderr.trim() || stdout.trim()).slice(-600);
    throw new RuntimeError("internal", `${what}: exit code ${code}${said === "" ? "" : `: ${said}`}`);
  }
  return stdout;
}
