import { randomBytes } from "node:crypto";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import { create } from "@bufbuild/protobuf";
import { RemoveImageRequestSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { pushImage } from "../images/build.ts";
import { imageOf, type Layer, mediaTypes } from "../images/image.ts";
import { blobOf, digestOf } from "../images/push.ts";
import { type Entry, tarOf } from "../images/tar.ts";
import type { Engine } from "./engines.ts";
import { quantile, type Row } from "./figures.ts";
import { type Bench, inTurns } from "./machine.ts";
import { pull as pullImage } from "./pod.ts";

const MB = 1 << 20;

/** A layer of `size` bytes in files of a program's size, of which about half can be compressed away. */
const layerOf = async (name: string, size: number, files: number): Promise<Layer> => {
  const each = Math.floor(size / files);
  const entries: Entry[] = [{ type: "folder", path: name }];
  for (let file = 0; file < files; file++) {
    const data = Buffer.alloc(each, `${name} ${file} `);
    for (let at = 0; at < each; at += 8192) randomBytes(Math.min(4096, each - at)).copy(data, at);
    entries.push({ type: "file", path: `${name}/${file}`, data });
  }
  const tar = tarOf(entries);
  return { diffId: digestOf(tar), blob: blobOf(mediaTypes.gzip, await promisify(gzip)(tar, { level: 1 })) };
};

const remove = (engine: Engine, image: string): Promise<unknown> =>
  engine.cri.image.removeImage(
    create(RemoveImageRequestSchema, { image: { image } }),
    AbortSignal.timeout(120_000),
  );

/** Pulls from a registry on loopback: small, ten layers, the same with nine of them there already, 1 GB; and removal. */
export const pull = async (bench: Bench): Promise<Row[]> => {
  const url = `http://${bench.machine.registry}`;
  const name = (image: string): string => `${bench.machine.registry}/${image}`;
  const push = async (image: string, layers: Layer[]): Promise<void> =>
    await pushImage(url, { names: [image], layers, ...imageOf(layers) });
  const small = await layerOf("small", 2 * MB, 40);
  await push("bench/small:1", [small]);
  const ten: Layer[] = [];
  for (let index = 0; index < 10; index++) ten.push(await layerOf(`layer${index}`, 12 * MB, 300));
  await push("bench/ten:1", ten);
  await push("bench/ten:2", [...ten.slice(0, 9), await layerOf("other", 12 * MB, 300)]);
  const large: Layer[] = [];
  for (let index = 0; index < 4; index++) large.push(await layerOf(`large${index}`, 256 * MB, 400));
  await push("bench/large:1", large);
  large.length = 0;
  bench.say("images for pulls are in the registry");

  const timed = async (work: () => Promise<unknown>): Promise<number> => {
    const began = performance.now();
    await work();
    return performance.now() - began;
  };
  const rows: Row[] = [];
  const compare = async (
    what: string,
    times: number,
    goal: number | undefined,
    before: (engine: Engine) => Promise<unknown>,
    measured: (engine: Engine) => Promise<unknown>,
    after: (engine: Engine) => Promise<unknown>,
  ): Promise<void> => {
    const [theirs, ours] = await inTurns(
      bench,
      async (engine) => {
        await before(engine);
        const taken = await timed(() => measured(engine));
        await after(engine);
        return taken;
      },
      times,
    );
    rows.push({
      ...{ name: what, unit: "ms", ...(goal === undefined ? {} : { goal }) },
      ...{ containerd: quantile(theirs, 0.5), bulkhead: quantile(ours, 0.5) },
    });
  };
  const nothing = async (): Promise<void> => {};
  const [few, fewer] = [Math.max(3, Math.ceil(bench.rounds / 4)), Math.max(2, Math.ceil(bench.rounds / 8))];
  const one = (image: string) => (engine: Engine) => pullImage(engine, name(image));
  const gone = (image: string) => (engine: Engine) => remove(engine, name(image));
  await compare(
    "pull of a small image",
    few,
    undefined,
    nothing,
    one("bench/small:1"),
    gone("bench/small:1"),
  );
  await compare("pull of 10 layers", few, 0.7, nothing, one("bench/ten:1"), gone("bench/ten:1"));
  await compare(
    "pull with 9 of 10 layers there",
    few,
    undefined,
    one("bench/ten:1"),
    one("bench/ten:2"),
    async (engine) => {
      for (const image of ["bench/ten:2", "bench/ten:1"]) await remove(engine, name(image));
    },
  );
  await compare("removal of 10 layers", few, undefined, one("bench/ten:1"), gone("bench/ten:1"), nothing);
  await compare("pull of 1 GB", fewer, undefined, nothing, one("bench/large:1"), gone("bench/large:1"));
  return rows;
};
