import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { RuntimeError } from "./errors.ts";

/**
 * The text of a regular file of at most `limit` bytes. What is larger, or no file (a FIFO, a device), is refused as
 * `failed-precondition`; system errors come through as they are.
 */
export const readBounded = async (path: string, limit: number): Promise<string> => {
  // O_NONBLOCK: nobody may hold us up by a FIFO of that name.
  await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  if (!(await file.stat()).isFile()) throw new RuntimeError("failed-precondition", "not a regular file");
  const chunks: Buffer[] = [];
  let length = 0;
  // By what comes, not by what stat says: files of /proc have no size, others grow.
  for await (const chunk of file.createReadStream({ autoClose: false, start: 0, end: limit })) {
    length += (chunk as Buffer).length;
    chunks.push(chunk as Buffer);
  }
  if (length > limit) throw new RuntimeError("failed-precondition", `larger than ${limit} bytes`);
  return Buffer.concat(chunks, length).toString("utf8");
};
