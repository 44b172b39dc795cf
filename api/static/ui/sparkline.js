// A small picture of the latest rates.

/** Draws samples into a 60 × 18 picture: an area (`<polygon>`) under a line (`<polyline>`), the newest at the right. */
export function sparkline(picture, rates) {
  const most = Math.max(1, ...rates);
  const left = 60 - (rates.length - 1) * 2;
  const points = rates.map((rate, number) => `${left + number * 2},${(17 - (15 * rate) / most).toFixed(1)}`).join(" ");
  const [area, line] = picture.children;
  line.setAttribute("points", points);
  area.setAttribute("points", `${left},18 ${points} 60,18`);
}
