import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/**
 * The files of an artifact in the making, kept in memory alone: contents lie under numbers until all is known, so that
 * no name of the artifact reaches the disk before it was judged. Pure.
 *
 * What no artifact may hold (devices, setuid programs, …) is noted as refused, not thrown: the base of an image that
 * carries Kata may have it, where nothing is taken from. It counts when it is in what is taken.
 */

type Node =
  | { kind: "directory"; layer: number }
  | { kind: "file"; layer: number; content: number; size: number; executable: boolean }
  | { kind: "link"; layer: number; target: string }
  | { kind: "refused"; layer: number; why: string };

/** What the disk shall get, by path in order. */
export type Layout = {
  files: { path: string; content: number; size: number; mode: 0o644 | 0o755 }[];
  links: { path: string; target: string }[];
};

const linksMost = 40;
const pathMost = 1024;
/** Folders that may be replaced or hidden: each costs a look at all files. */
const replacementsMost = 1000;

export const refusal = (path: string, why: string): RuntimeError =>
  new RuntimeError("invalid-argument", `Cannot unpack the artifact: ${JSON.stringify(path)} ${why}`);

/**
 * The parts of an entry's name, which is a byte string (one character a byte), and why nothing of that name can be
 * taken, if so. Throws for a name that climbs out: no honest image has one.
 */
export const partsOf = (name: string): { parts: string[]; odd?: string } => {
  if (name.split("/").includes("..")) throw refusal(name, 'has ".." in its name');
  const text = Buffer.from(name, "latin1").toString("utf8");
  const parts = text.split("/").filter((part) => part !== "" && part !== ".");
  if (/[\p{Cc}\\\ufffd]/u.test(text)) return { parts, odd: "has a name that is no plain text" };
  if (text.length > pathMost || parts.some((part) => Buffer.byteLength(part) > 255))
    return { parts, odd: "has a name that is too long" };
  return { parts };
};

export class ArtifactTree {
  readonly #nodes = new Map<string, Node>();
  #layer = 0;
  #replaced = 0;

  /** What comes now is of the next layer: its whiteouts hide what came before. */
  nextLayer(): void {
    this.#layer++;
  }

  directory(parts: string[]): void {
    const path = this.#enter(parts);
    if (path === undefined) return;
    if (this.#nodes.get(path)?.kind !== "directory")
      this.#put(path, { kind: "directory", layer: this.#layer });
  }

  file(parts: string[], content: number, size: number, executable: boolean): void {
    const path = this.#enter(parts);
    if (path !== undefined) this.#put(path, { kind: "file", layer: this.#layer, content, size, executable });
  }

  link(parts: string[], target: string): void {
    const path = this.#enter(parts);
    if (path !== undefined) this.#put(path, { kind: "link", layer: this.#layer, target });
  }

  /** Another name of a file that came before. */
  hardLink(parts: string[], source: string[]): void {
    const found = this.#nodes.get(source.join("/"));
    if (found === undefined || found.kind === "directory")
      this.refuse(parts, `is a hard link to "${source.join("/")}", which is no file of the artifact`);
    else {
      const path = this.#enter(parts);
      if (path !== undefined) this.#put(path, { ...found, layer: this.#layer });
    }
  }

  refuse(parts: string[], why: string): void {
    const path = this.#enter(parts);
    if (path !== undefined) this.#put(path, { kind: "refused", layer: this.#layer, why });
  }

  /** Takes away what layers below brought at a path. */
  whiteout(parts: string[]): void {
    this.#remove(parts.join("/"), this.#layer);
  }

  /** Takes away what layers below brought in a directory. */
  opaque(parts: string[]): void {
    this.#replacement(parts.join("/"));
    const prefix = parts.length === 0 ? "" : `${parts.join("/")}/`;
    for (const [path, { layer }] of this.#nodes)
      if (path.startsWith(prefix) && layer < this.#layer) this.#nodes.delete(path);
  }

  /** Files below a path, by the rest of their paths. */
  filesBelow(path: string): { name: string; content: number }[] {
    const prefix = path === "" ? "" : `${path}/`;
    return [...this.#nodes].flatMap(([at, node]) =>
      at.startsWith(prefix) && node.kind === "file"
        ? [{ name: at.slice(prefix.length), content: node.content }]
        : [],
    );
  }

  isDirectory(path: string): boolean {
    return this.#nodes.get(path)?.kind === "directory";
  }

  /**
   * All that is below `root`, which becomes the artifact's own root. `home`: the absolute path that its links know it
   * by (/opt/kata). Throws when something of it may not be.
   */
  layout(root: string, home: string | undefined): Layout {
    const prefix = root === "" ? "" : `${root}/`;
    const inside = new Map(
      [...this.#nodes]
        .filter(([path]) => path.startsWith(prefix))
        .map(([path, node]) => [path.slice(prefix.length), node] as const)
        .toSorted(([a], [b]) => (a < b ? -1 : 1)),
    );
    const layout: Layout = { files: [], links: [] };
    for (const [path, node] of inside) {
      if (node.kind === "refused") throw refusal(path, node.why);
      if (node.kind === "file") {
        const executable = node.executable || /^(runtime-rs\/)?bin\/[^/]+$/.test(path);
        const { content, size } = node;
        layout.files.push({ path, content, size, mode: executable ? 0o755 : 0o644 });
      }
      if (node.kind === "link")
        layout.links.push({ path, target: insideTarget(path, node.target, inside, home) });
    }
    return layout;
  }

  /** The path of an entry, with the directories above it. Undefined when it lies below something that is none. */
  #enter(parts: string[]): string | undefined {
    for (let n = 1; n < parts.length; n++) {
      const above = parts.slice(0, n).join("/");
      const kind = this.#nodes.get(above)?.kind;
      if (kind === undefined) this.#nodes.set(above, { kind: "directory", layer: this.#layer });
      else if (kind !== "directory") {
        // Never through a link: what stands behind it is another entry's business.
        const what = kind === "link" ? "a symbolic link" : "something that is no directory";
        this.#nodes.set(parts.join("/"), { kind: "refused", layer: this.#layer, why: `lies below ${what}` });
        return undefined;
      }
    }
    return parts.join("/");
  }

  #put(path: string, node: Node): void {
    this.#remove(path);
    this.#nodes.set(path, node);
  }

  /** Removes what is at a path and below it; with `before`, only what is of layers before that one. */
  #remove(path: string, before = Number.POSITIVE_INFINITY): void {
    const known = this.#nodes.get(path);
    if (known === undefined) return;
    if (known.layer < before) this.#nodes.delete(path);
    if (known.kind !== "directory") return;
    this.#replacement(path);
    for (const [below, { layer }] of this.#nodes)
      if (below.startsWith(`${path}/`) && layer < before) this.#nodes.delete(below);
  }

  #replacement(path: string): void {
    if (++this.#replaced > replacementsMost)
      throw refusal(path, `is one of more than ${replacementsMost} folders that are replaced`);
  }
}

/** Where a link leads, as a relative target. Every link on the way is followed; none may leave the artifact. */
const insideTarget = (
  path: string,
  target: string,
  nodes: ReadonlyMap<string, Node>,
  home: string | undefined,
): string => {
  const relative = relativeTarget(path, target, home);
  let walked = path.split("/").slice(0, -1);
  const todo = relative.split("/").reverse();
  for (let links = 0; todo.length > 0; ) {
    const part = todo.pop();
    if (part === undefined || part === "" || part === ".") continue;
    if (part === "..") {
      if (walked.pop() === undefined)
        throw refusal(path, `is a symbolic link out of the artifact ("${target}")`);
      continue;
    }
    walked = [...walked, part];
    const node = nodes.get(walked.join("/"));
    if (node?.kind !== "link") continue;
    if (++links > linksMost || todo.length > pathMost)
      throw refusal(path, "is one of too many symbolic links");
    const next = relativeTarget(walked.join("/"), node.target, home);
    walked = walked.slice(0, -1);
    todo.push(...next.split("/").reverse());
  }
  return relative;
};

const relativeTarget = (path: string, target: string, home: string | undefined): string => {
  if (!target.startsWith("/")) return target;
  if (home === undefined || !target.startsWith(`${home}/`))
    throw refusal(path, `is a symbolic link out of the artifact ("${target}")`);
  return `${"../".repeat(path.split("/").length - 1)}${target.slice(home.length + 1)}`;
};
