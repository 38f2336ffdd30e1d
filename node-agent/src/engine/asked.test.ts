import type { CriClient } from "@bulkhead/lib/cri/client.ts";
import { expect, test } from "vitest";
import { tookUp } from "./asked.ts";

/** A fake of CRI-O: what it shows and what it starts pods by are two tables, as in the real one. */
function fake(
  before: string[],
  file: string[],
  { follows, breaks = false }: { follows: boolean; breaks?: boolean },
) {
  let [shown, starts] = [before, before];
  const asked: string[] = [];
  const runtime = {
    status: () => Promise.resolve({ runtimeHandlers: shown.map((name) => ({ name })), info: {} }),
    runPodSandbox: ({ runtimeHandler }: { runtimeHandler: string }) => {
      asked.push(runtimeHandler);
      const known = starts.includes(runtimeHandler);
      const why = known
        ? 'unsupported pod mode: "CONTAINER"'
        : `failed to find runtime handler ${runtimeHandler}`;
      return Promise.reject(new Error(breaks ? "out of order" : why));
    },
  };
  const hup = () => {
    shown = file;
    if (follows) starts = file;
    return Promise.resolve();
  };
  const cri = { runtime } as unknown as CriClient;
  const take = (comes: string[], goes: string[] = []) =>
    tookUp(cri, { comes, goes }, hup, AbortSignal.timeout(20_000), { reloadMs: 500, followMs: 100 });
  return { take, asked, shows: () => shown };
}

test("one that starts pods by what it read needs nothing more", async () => {
  expect(await fake(["runc"], ["runc", "walled"], { follows: true }).take(["walled"])).toBeUndefined();
  expect(await fake(["runc", "walled"], ["runc"], { follows: true }).take([], ["walled"])).toBeUndefined();
});

test("one that shows what it read, and starts pods by what it had, has to be restarted", async () => {
  const adds = fake(["runc"], ["runc", "walled"], { follows: false });
  expect(await adds.take(["walled"])).toBe('it starts no pods by "walled"');
  const loses = fake(["runc", "walled"], ["runc"], { follows: false });
  expect(await loses.take([], ["walled"])).toBe('it starts pods by an earlier "walled"');
});

test("a handler that it has already may be the one of before, whatever it reads", async () => {
  const same = fake(["runc", "walled"], ["runc", "walled"], { follows: true });
  expect(await same.take(["walled"])).toBe('it starts pods by an earlier "walled"');
  expect(same.asked).toEqual(["walled"]);
});

test("one that answers something else is not believed", async () => {
  const broken = fake(["runc"], ["runc", "walled"], { follows: true, breaks: true });
  expect(await broken.take(["walled"])).toBe(
    'it does not say whether it starts pods by "walled": out of order',
  );
  expect(broken.shows()).toContain("walled");
});
