/** How far the clocks may be apart while nobody has set one: the wall clock is told in whole milliseconds. */
const apartMs = 2;
let origin = performance.timeOrigin;

/**
 * Milliseconds since the epoch, as fine as the monotonic clock tells them. Follows the wall clock when it is set while
 * we run, as on a node that boots with a wrong one: performance.timeOrigin alone stays where it was at the start.
 */
export const wallClock = (): number => {
  const at = origin + performance.now();
  const wall = Date.now();
  if (at > wall - apartMs && at < wall + 1 + apartMs) return at;
  origin += wall - at;
  return wall;
};
