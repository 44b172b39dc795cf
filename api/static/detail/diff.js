// The differences of two texts, by words; of long texts by lines.

const WORDS = 200_000; // characters of both texts up to which words are compared
const EDITS = 2000; // maximum number of differences that are searched for: takes a second, and 16 MB

const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];
const lines = (text) => text.match(/[^\n]*\n|[^\n]+/g) ?? [];

/** @typedef {{kind: "same" | "removed" | "added", text: string}} Piece */

/** Returns the pieces that lead from one text to another one. @returns {Piece[]} */
export function differences(before, after) {
  const ways = before.length + after.length <= WORDS ? [words, lines] : [lines];
  for (const split of ways) {
    const found = compare(split(before), split(after));
    if (found) return found;
  }
  return [piece("removed", [before]), piece("added", [after])].filter(({ text }) => text);
}

/** Compares two lists without what they have in common at both ends; null if they differ too much. */
function compare(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const [left, right] = [a.slice(start, a.length - end), b.slice(start, b.length - end)];
  const middle = left.length && right.length ? search(left, right) : [piece("removed", left), piece("added", right)];
  if (!middle) return null;
  const all = [piece("same", a.slice(0, start)), ...middle, piece("same", a.slice(a.length - end))];
  return all.filter(({ text }) => text);
}

const piece = (kind, items) => ({ kind, text: items.join("") });

/** Myers' algorithm (An O(ND) Difference Algorithm, 1986): the shortest way; null if it has more than EDITS steps. */
function search(a, b) {
  const most = Math.min(EDITS, a.length + b.length);
  const reached = new Int32Array(2 * most + 3);
  const at = (k) => k + most + 1;
  const steps = [];
  for (let edits = 0; edits <= most; edits++) {
    steps.push(reached.slice(at(-edits - 1), at(edits + 1) + 1));
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && reached[at(k - 1)] < reached[at(k + 1)]);
      let x = down ? reached[at(k + 1)] : reached[at(k - 1)] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      reached[at(k)] = x;
      if (x >= a.length && x - k >= b.length) return walkBack(a, b, steps);
    }
  }
  return null;
}

/** Returns the pieces of a found way. `steps[d]`: what was reached with fewer than d edits, from diagonal -d - 1 on. */
function walkBack(a, b, steps) {
  const pieces = [];
  const put = (kind, item) => {
    if (pieces.at(-1)?.kind === kind) pieces.at(-1).items.push(item);
    else pieces.push({ kind, items: [item] });
  };
  let [x, y] = [a.length, b.length];
  for (let edits = steps.length - 1; edits >= 0; edits--) {
    const reached = (k) => steps[edits][k + edits + 1];
    const k = x - y;
    const down = k === -edits || (k !== edits && reached(k - 1) < reached(k + 1));
    const beforeX = edits ? (down ? reached(k + 1) : reached(k - 1)) : 0;
    const beforeY = edits ? beforeX - (down ? k + 1 : k - 1) : 0;
    while (x > beforeX && y > beforeY && a[x - 1] === b[y - 1]) {
      put("same", a[--x]);
      y--;
    }
    if (!edits) break;
    if (down) put("added", b[--y]);
    else put("removed", a[--x]);
  }
  return pieces.reverse().map(({ kind, items }) => piece(kind, items.reverse()));
}
