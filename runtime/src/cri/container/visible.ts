import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { isVisible, type Visible } from "../../container/state.ts";
import type { Runtime } from "../runtime.ts";

/** A container that is there for others than its maker. */
export const requireVisible = (runtime: Pick<Runtime, "containers">, id: string): Visible => {
  const container = runtime.containers.require(id);
  if (!isVisible(container))
    throw new RuntimeError("not-found", `Cannot find container "${id}": it is being created`);
  return container;
};
