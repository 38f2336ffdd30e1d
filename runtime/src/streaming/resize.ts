import type { Readable } from "node:stream";

/** A size message has some thirty bytes; more without a closing brace is not one. */
const maxMessage = 1024;

/**
 * Reads window sizes: JSON objects {"Width":W,"Height":H} one after the other, however they are cut into chunks.
 * Invalid ones end the reading; sizes of 0 or above 65535 are passed over.
 */
export async function* windowSizes(resize: Readable): AsyncGenerator<{ width: number; height: number }> {
  let text = "";
  for await (const chunk of resize) {
    text += String(chunk);
    for (let end = text.indexOf("}"); end >= 0; end = text.indexOf("}")) {
      const size = parse(text.slice(0, end + 1));
      text = text.slice(end + 1);
      if (!size) return;
      if (inRange(size.width) && inRange(size.height)) yield size;
    }
    if (text.length > maxMessage) return;
  }
}

const inRange = (value: number): boolean => Number.isInteger(value) && value > 0 && value <= 65535;

function parse(text: string): { width: number; height: number } | undefined {
  try {
    const { Width, Height } = JSON.parse(text) as { Width?: unknown; Height?: unknown };
    return { width: Number(Width), height: Number(Height) };
  } catch {
    return undefined;
  }
}
