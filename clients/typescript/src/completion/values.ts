/** What upstreams send, whatever its type: chunks are passed on unchanged. */

export type Fields = Readonly<Record<string, unknown>>;

export const isObject = (value: unknown): value is Fields =>
  value !== null && typeof value === "object" && !Array.isArray(value);

export const objectsOf = (value: unknown): readonly Fields[] => (Array.isArray(value) ? value.filter(isObject) : []);

/** Whether a value is text: some upstreams send numbers. */
export const isText = (value: unknown): value is string | number =>
  typeof value === "string" || typeof value === "number";

const INDEXES = 2 ** 31;

/** The index of a choice or a call; digits as text are a number. */
export function indexOf({ index }: Fields): number | null {
  const number = typeof index === "string" && /^[0-9]{1,10}(\.0)?$/.test(index) ? Number(index) : index;
  return typeof number === "number" && Number.isInteger(number) && number >= 0 && number < INDEXES ? number : null;
}

/** All text of a string, a typed part, or a list of either. */
export function plain(value: unknown): string {
  if (isText(value)) return String(value);
  if (Array.isArray(value)) return value.map(plain).join("");
  if (!isObject(value)) return "";
  return plain(value["text"] ?? value["thinking"] ?? value["summary"] ?? value["reasoning"] ?? "");
}

/** What a piece adds to a text. A whole text that begins with the known one repeats it. */
export const more = (known: string, piece: string, whole: boolean): string =>
  whole && piece.startsWith(known) ? piece.slice(known.length) : piece;
