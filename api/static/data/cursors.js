// Cursors, `<attempt>-<seq>`: positions in the log of a generation.

/** Returns the attempt and the sequence number of a cursor: an attempt has 51 bits. */
export const parts = (cursor) => cursor.split("-").map(Number);

/** Returns whether cursor `a` is before `b` or the same. */
export function notAfter(a, b) {
  const [[attempt, seq], [other, last]] = [parts(a), parts(b)];
  return attempt < other || (attempt === other && seq <= last);
}
