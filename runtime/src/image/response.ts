import { messageOf } from "@bulkhead/lib/std/errors.ts";
import type { Dispatcher } from "undici";
import * as z from "zod";
import { EndpointError } from "./endpoint-error.ts";

/** A header, its values joined. */
export const headerOf = (response: Dispatcher.ResponseData, name: string): string | undefined => {
  const value = response.headers[name];
  return Array.isArray(value) ? value.join(", ") : value;
};

/** Parses JSON of a stranger; undefined for what is none. */
export const parseJson = (bytes: Uint8Array): unknown => {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return undefined;
  }
};

/** Why a connection failed, in words. */
export const reasonOf = (cause: unknown): string => {
  if (cause instanceof AggregateError) return cause.errors.map(messageOf).join(", ");
  const inner = cause instanceof Error && cause.cause instanceof Error ? `: ${cause.cause.message}` : "";
  return `${messageOf(cause)}${inner}`;
};

/** The body of a response; a connection that breaks is the endpoint's failure. */
export async function* bodyOf(response: Dispatcher.ResponseData, what: string): AsyncGenerator<Buffer> {
  const chunks = response.body[Symbol.asyncIterator]();
  for (;;) {
    let next: IteratorResult<unknown>;
    try {
      next = await chunks.next();
    } catch (cause) {
      throw new EndpointError("unavailable", `${what}: ${reasonOf(cause)}`, { cause });
    }
    if (next.done) return;
    yield next.value as Buffer;
  }
}

/** The whole body, of at most `limit` bytes. */
export const collect = async (
  response: Dispatcher.ResponseData,
  limit: number,
  what: string,
): Promise<Buffer> => {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of bodyOf(response, what)) {
    length += chunk.length;
    if (length > limit) {
      response.body.destroy();
      throw new EndpointError("invalid", `${what} has more than ${limit} bytes`);
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, length);
};

/** Reads the rest of a body that nobody wants, so that its connection serves again; a long one is cut off. */
export const discard = async (response: Dispatcher.ResponseData): Promise<void> => {
  await response.body.dump({ limit: 64 << 10 }).catch(() => {});
};

const errorBody = z.object({
  errors: z.array(z.object({ code: z.string().optional(), message: z.string().optional() })),
});

/** The registry's own words (distribution-spec, "Error Codes"), short and on one line. */
export const errorDetail = async (response: Dispatcher.ResponseData): Promise<string> => {
  const bytes = await collect(response, 64 << 10, "error").catch(() => Buffer.alloc(0));
  const first = errorBody.safeParse(parseJson(bytes)).data?.errors[0];
  const words = first?.message ?? first?.code;
  return words === undefined ? "" : ` (${words.replace(/[\p{Cc}]+/gu, " ").slice(0, 200)})`;
};
