import { keepOthers } from "../cluster/keep.ts";
import { description } from "./life.ts";

/** vitest's globalSetup of the project lifecycle. */
export default (): Promise<() => Promise<void>> => keepOthers(description.name);
