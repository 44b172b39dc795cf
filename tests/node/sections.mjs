// The dashboard's sections for chunks: reads {name: [chunk, ...]} as JSON and prints {name: [[title, text], ...]}, the
// text under each heading after all chunks, or [["error", stack]] if the dashboard's code fails.
//
//     node sections.mjs FOLDER-OF-THE-MODULES < chunks.json

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { Recording } = await import(pathToFileURL(`${process.argv[2]}/data/recording.js`));

function sections(chunks) {
  const recording = new Recording();
  for (const [number, data] of chunks.entries()) recording.push({ id: `1-${number + 1}`, event: "chunk", data }, number);
  const count = recording.length;
  return recording
    .attemptAt()
    .shown(count)
    .map((part) => [part.title(count), part.text(count)])
    .concat([["finish", recording.facts().finish ?? ""]]);
}

const shown = {};
for (const [name, chunks] of Object.entries(JSON.parse(readFileSync(0, "utf-8")))) {
  try {
    shown[name] = sections(chunks);
  } catch (error) {
    shown[name] = [["error", String(error.stack)]];
  }
}
process.stdout.write(JSON.stringify(shown));
