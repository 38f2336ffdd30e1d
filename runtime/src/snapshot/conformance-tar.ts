import { type Header, pack } from "tar-stream";

/** One entry of a layer tar: what is not said is a file of root's, 0644, of 2001. */
export type LayerEntry = Partial<Header> & { name: string; body?: string | Buffer };

/** A layer tar by a writer that is not ours. */
export async function* layerTar(...entries: LayerEntry[]): AsyncGenerator<Uint8Array> {
  const tar = pack();
  for (const { body = "", ...header } of entries) {
    const full = { mode: header.type === "directory" ? 0o755 : 0o644, mtime: new Date(1e12), ...header };
    if (full.type !== undefined && full.type !== "file") tar.entry(full as Header);
    else tar.entry(full as Header, body);
  }
  tar.finalize();
  for await (const chunk of tar) yield chunk as Uint8Array;
}
