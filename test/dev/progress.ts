import type { Progress } from "../cluster/cluster.ts";
import type { SetupReport } from "../tools/setup.ts";

const say = (text: string): void => void process.stderr.write(`${text}\n`);
const took = (seconds: number): string => `${seconds.toFixed(1)} s`;

/** Says when a part of the work begins and how long it took. Parts that take no time are not worth a line. */
export const progress: Progress = async (title, work) => {
  const begun = performance.now();
  const seconds = (): number => (performance.now() - begun) / 1000;
  const slow = setTimeout(() => say(`  ${title} …`), 1000);
  try {
    const result = await work();
    say(`✓ ${title}  ${took(seconds())}`);
    return result;
  } catch (error) {
    say(`✗ ${title}  ${took(seconds())}`);
    throw error;
  } finally {
    clearTimeout(slow);
  }
};

/** The same for the steps of set-up. */
export const reportSetup: SetupReport = (step, event, seconds, reason) =>
  say(
    {
      begin: `  set up ${step} …`,
      end: `✓ set up ${step}  ${took(seconds)}`,
      failed: `✗ set up ${step}  ${took(seconds)}: its tests skip. ${reason}`,
    }[event],
  );
