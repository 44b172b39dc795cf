// Batching of updates by the frames of the browser.

/** Returns a function that calls `paint` once in the next frame, however often it is called. */
export function oncePerFrame(paint) {
  let frame = 0;
  return () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      paint();
    });
  };
}
