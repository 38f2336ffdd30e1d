#!/usr/bin/env node
import "./memory.ts";
import { readFileSync } from "node:fs";
import type { Config } from "@bulkhead/lib/api/runtime-config.ts";
import { completion, shells } from "@bulkhead/lib/cli/completion.ts";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { traceFields } from "@bulkhead/lib/tracing/span.ts";
import { Argument, Command, Option } from "commander";
import pino, { type Logger } from "pino";
import * as z from "zod";
import type { ArtifactRequest, ArtifactSources } from "./artifact/fetch.ts";
import { defaultConfig, parseConfig, readConfig, type ServeFlags, withFlags } from "./config.ts";

const version = z
  .object({ version: z.string() })
  .parse(JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"))).version;

type ServeOptions = ServeFlags & { config?: string };

/** HOST=URL, any number of times; the order of one host's URLs is the order of asking. */
const mirror = (value: string, before: Record<string, string[]>): Record<string, string[]> => {
  const [, host, url] = /^([^=]+)=(https?:\/\/.+)$/.exec(value) ?? [];
  if (host === undefined || url === undefined) throw new Error(`--mirror needs HOST=URL, not "${value}"`);
  return { ...before, [host]: [...(before[host] ?? []), url] };
};

const logger = ({ level, format }: Config["log"]): Logger =>
  pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      mixin: traceFields,
    },
    format === "json" ? process.stdout : asText(process.stdout),
  );

/** One line for people: time, level, message, then the fields. */
const asText = (out: NodeJS.WritableStream): { write(line: string): void } => ({
  write: (line) => {
    const { time, level, msg, ...fields } = JSON.parse(line) as Record<string, unknown>;
    const rest = Object.entries(fields).map(([key, value]) => `${key}=${JSON.stringify(value)}`);
    out.write(`${[time, level, msg, ...rest].join(" ")}\n`);
  },
});

const program = new Command("bulkhead-runtime")
  .description("CRI v1 runtime: puts pods behind the wall that their handler names.")
  .version(version);

program
  .command("serve")
  .description("serve the CRI until SIGTERM; containers go on afterwards")
  .option("--config <file>", "configuration file (default: /etc/bulkhead/runtime.yaml, where it exists)")
  .option("--socket <path>", "CRI socket")
  .option("--root <dir>", "images and container file systems")
  .option("--state <dir>", "what is valid until reboot, on tmpfs")
  .option("--mirror <host=url>", "ask this URL before the registry HOST; may be repeated", mirror, {})
  .addOption(new Option("--log-level <level>").choices(["trace", "debug", "info", "warn", "error"]))
  .action(async (flags: ServeOptions) => {
    const { serve } = await import("./serve.ts");
    const config = withFlags(await readConfig(flags.config), flags);
    const log = logger(config.log);
    const stop = new AbortController();
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => stop.abort());
    process.on("unhandledRejection", (error) => log.error({ err: error }, "unhandled rejection"));
    await serve(config, version, log, stop.signal);
    // Threads and sockets of libraries may linger; everything that counts is closed.
    process.exit(0);
  });

const config = program.command("config").description("look at configurations");
config
  .command("default")
  .description("print the documented default configuration")
  .action(() => void process.stdout.write(defaultConfig));
config
  .command("check <file>")
  .description("check a configuration file")
  .action((file: string) => {
    parseConfig(readFileSync(file, "utf8"), file);
    process.stdout.write(`${file}: ok\n`);
  });

type FetchOptions = {
  config?: string;
  registry?: string;
  certs?: string;
  credentials?: string;
  key: string[];
  identity: "repository" | "any";
  platform?: { os: string; architecture: string };
  maxBytes: number;
  maxFiles: number;
};

const platform = (value: string): FetchOptions["platform"] => {
  const [, os, architecture] = /^([a-z0-9]+)\/([a-z0-9]+)$/.exec(value) ?? [];
  if (os === undefined || architecture === undefined)
    throw new Error(`--platform needs OS/ARCHITECTURE, not "${value}"`);
  return { os, architecture };
};
const positive = (value: string): number => {
  if (!/^[1-9][0-9]{0,14}$/.test(value)) throw new Error(`"${value}" is no positive number`);
  return Number(value);
};

const artifact = program
  .command("artifact")
  .description("programs of a wall that come as an OCI image or artifact");

/** A subcommand of `artifact`, with the options by which one is found and trusted. */
const artifactCommand = (usage: string): Command =>
  artifact
    .command(usage)
    .option(
      "--config <file>",
      "whose registries and signature rules hold (default: /etc/bulkhead/runtime.yaml)",
    )
    .option("--registry <host[:port][/path]>", "ask this registry instead of the image's own")
    .option("--certs <directory>", "HOST/hosts.toml and certificates, instead of the configuration's")
    .option("--credentials <file>", "a docker config.json, instead of the configuration's")
    .option(
      "--key <file>",
      "public key that must have signed it; any one of several",
      (file: string, before: string[]) => [...before, file],
      [],
    )
    .addOption(
      new Option("--identity <what>", "whether the signature must name the image's repository")
        .choices(["repository", "any"])
        .default("repository"),
    )
    .option("--platform <os/architecture>", "instead of this machine's", platform);

/** Calls `work` with what the flags and the configuration say, until SIGTERM, and prints its answer in one line. */
const withArtifact = async (
  image: string,
  flags: FetchOptions,
  work: (
    request: Omit<ArtifactRequest, "directory" | "limits">,
    sources: ArtifactSources,
    signal: AbortSignal,
  ) => Promise<object>,
): Promise<void> => {
  const { registries, images } = await readConfig(flags.config);
  const stop = new AbortController();
  for (const signal of ["SIGTERM", "SIGINT"] as const)
    process.once(signal, () => stop.abort(new Error(signal)));
  const { registry, key: keys, identity } = flags;
  const sources = {
    mirrors: registries.mirrors,
    certsDir: flags.certs ?? registries.configPath,
    credentialsFile: flags.credentials ?? registries.credentials ?? undefined,
    signatures: images.signatures,
    log: pino({ level: "warn", base: null }, process.stderr),
  };
  const request = { image, registry, keys, identity, platform: flags.platform };
  const answer = await work(request, sources, stop.signal);
  process.stdout.write(`${JSON.stringify(answer)}\n`);
};

artifactCommand("verify <image>")
  .description("verify the digest and the signature of one, and fetch nothing else of it")
  .action(async (image: string, flags: FetchOptions) => {
    const { verifyArtifact } = await import("./artifact/fetch.ts");
    await withArtifact(image, flags, verifyArtifact);
  });
artifactCommand("fetch <image> <directory>")
  .description("fetch one by digest, verify it, and unpack it into DIRECTORY: root/ and manifest.json")
  .option("--max-bytes <number>", "bound of its unpacked size", positive, 8 * 2 ** 30)
  .option("--max-files <number>", "bound of its entries", positive, 50_000)
  .action(async (image: string, directory: string, flags: FetchOptions) => {
    const { fetchArtifact } = await import("./artifact/fetch.ts");
    process.umask(0o022);
    await withArtifact(image, flags, async (request, sources, signal) => {
      const limits = { bytes: flags.maxBytes, files: flags.maxFiles };
      const { list, manifest } = await fetchArtifact({ ...request, directory, limits }, sources, signal);
      const { files, ...rest } = manifest;
      const bytes = files.reduce((sum, file) => sum + (file.kind === "file" ? file.size : 0), 0);
      return { ...rest, list, files: files.length, bytes };
    });
  });

program
  .command("version")
  .description("print the version")
  .action(() => void process.stdout.write(`bulkhead-runtime ${version}\n`));

program
  .command("completion")
  .description("print a completion script")
  .addArgument(new Argument("<shell>").choices(shells))
  .action((shell: (typeof shells)[number]) => void process.stdout.write(completion(program, shell)));

try {
  await program.parseAsync();
} catch (error) {
  process.stderr.write(`bulkhead-runtime: ${messageOf(error)}\n`);
  process.exitCode = 1;
}
