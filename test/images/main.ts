import { program } from "commander";
import { ensureTestImages } from "./build.ts";
import { catalog } from "./catalog.ts";

await program
  .name("node test/images/main.ts")
  .description("Builds the test images from Debian packages and pushes them to a registry in plain HTTP.")
  .argument(
    "[names...]",
    `images to push, all when none is named: ${catalog.map(({ names }) => names[0]).join(" ")}`,
  )
  .option("--registry <host:port>", "registry to push to", "127.0.0.1:5000")
  .action(async (names: string[], { registry }: { registry: string }) => {
    const { refs } = await ensureTestImages(registry, names.length > 0 ? names : undefined);
    const pushed = names.length > 0 ? names : Object.keys(refs);
    for (const name of pushed) process.stdout.write(`${refs[name]}\n`);
  })
  .parseAsync();
