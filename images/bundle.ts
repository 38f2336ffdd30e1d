import { chmod, readdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { type BuildOptions, build, type Plugin } from "esbuild";

const repository = dirname(import.meta.dirname);

const bundling: BuildOptions = {
  bundle: true,
  platform: "node",
  target: "node26",
  format: "esm",
  minifySyntax: true,
  minifyWhitespace: true,
  keepNames: true,
  // What is imported late lies apart: it takes memory when it is used.
  splitting: true,
  legalComments: "none",
  // Loads a native module that lies beside the bundle.
  external: ["koffi"],
  // Packages in CommonJS ask for require in a module of type ESM.
  banner: {
    js: 'import { createRequire as createRequireForBundle } from "node:module"; const require = createRequireForBundle(import.meta.url);',
  },
  logLevel: "warning",
};

/**
 * Node's own flags of the operator: watches of thousands of nodes are short-lived text, and need no 60 MB of nursery; its
 * heap is mostly what it remembers, and is collected before a half more has come on top.
 */
export const operatorFlags = ["--max-semi-space-size=8", "--heap-growing-percent=15"];

/** One arena of malloc: what short-lived bodies of many threads leave behind in eight of them is a tenth of the process. */
export const operatorEnvironment = { MALLOC_ARENA_MAX: "1" };

/** Programs that print their package's version print this one. */
const saying = (version: string): Plugin => ({
  name: "version",
  setup: ({ onLoad }) => {
    onLoad({ filter: /\/(operator|node-agent|runtime)\/package\.json$/ }, async ({ path }) => ({
      loader: "json",
      contents: JSON.stringify({ ...JSON.parse(await readFile(path, "utf8")), version }),
    }));
  },
});

/** Bundles programs into one directory: output name → entry file. They print `release` as their version, or their package's. */
export async function bundle(
  entries: Record<string, string>,
  directory: string,
  release?: string,
): Promise<void> {
  await build({
    ...bundling,
    plugins: release === undefined ? [] : [saying(release)],
    entryPoints: Object.entries(entries).map(([out, file]) => ({ out, in: join(repository, file) })),
    outdir: directory,
    outExtension: { ".js": ".mjs" },
  });
}

/** kubectl's plugin as one file that is run by its name, by the Node.js that whoever runs kubectl has: 22 or newer. */
export async function bundlePlugin(directory: string): Promise<string> {
  const outfile = join(directory, "kubectl-bulkhead");
  await build({
    ...bundling,
    splitting: false,
    target: "node22",
    entryPoints: [join(repository, "kubectl/src/main.ts")],
    outfile,
  });
  await chmod(outfile, 0o755);
  return outfile;
}

/** Worker threads are programs of their own: runtime/src/A/B/worker.ts becomes A-B-worker.mjs beside main.mjs. */
export async function workersOf(program: string): Promise<Record<string, string>> {
  const found = await readdir(join(repository, program), { recursive: true });
  return Object.fromEntries(
    found
      .filter((path) => path.endsWith("/worker.ts"))
      .map((path) => [path.replace(/\.ts$/, "").replaceAll("/", "-"), join(program, path)]),
  );
}
