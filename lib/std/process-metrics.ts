import { collectDefaultMetrics, type Registry } from "prom-client";

/**
 * prom-client's metrics of the process itself. Its look at the event loop is a timer: every 10 ms, as it has it, would wake
 * each process a hundred times a second for nothing. So `nodejs_eventloop_lag_…` are never less than this.
 */
export const processMetrics = (register: Registry, prefix = ""): void =>
  collectDefaultMetrics({ register, prefix, eventLoopMonitoringPrecision: 100 });
