import { keepOthers } from "./keep.ts";
import { sharedDescription } from "./shared.ts";

/** vitest's globalSetup of the project cluster. It starts nothing: a run that needs no cluster pays for none. */
export default (): Promise<() => Promise<void>> => keepOthers(sharedDescription.name);
