import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { type Browser, chromium } from "playwright-core";
import { inCache } from "../tools/cache.ts";

export type { Browser, Page } from "playwright-core";

/** Debian's Chromium, which asks nothing of the network that the test does not. */
export const launchChromium = (): Promise<Browser> =>
  chromium.launch({
    executablePath: "/usr/bin/chromium",
    args: [
      ...["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
      ...["--disable-background-networking", "--disable-component-update", "--disable-sync"],
    ],
  });

/** Where screenshots of a test are kept for people to look at. */
export const screenshot = async (name: string): Promise<string> => {
  const directory = inCache("screenshots");
  await mkdir(directory, { recursive: true });
  return join(directory, `${name}.png`);
};
