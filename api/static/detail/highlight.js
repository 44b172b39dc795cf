// Colours of code, by a library that is loaded with the first code.

const LONGEST = 50_000; // characters
const ELEMENT = 1; // nodeType

let library = null;

/**
 * Returns the nodes of a code, with a `span` around each part that has a colour; null if its language is unknown.
 * @returns {Promise<?Node[]>}
 */
export async function highlighted(text, language) {
  if (text.length > LONGEST) return null;
  library ??= import("../vendor/highlight-11.12.0/highlight.min.js").then((module) => module.default);
  const known = await library.catch(() => (library = null)); // the next code tries again
  if (!known?.getLanguage(language)) return null;
  const { value } = known.highlight(text, { language, ignoreIllegals: true });
  // A document of its own, whose scripts do not run; only its texts and the classes of its spans are used.
  return nodesOf(new DOMParser().parseFromString(`<pre>${value}</pre>`, "text/html").querySelector("pre"));
}

function nodesOf(parent) {
  return Array.from(parent.childNodes, (node) => {
    if (node.nodeType !== ELEMENT) return new Text(node.textContent);
    const span = document.createElement("span");
    span.className = [...node.classList].filter((name) => /^hljs-[\w-]+$|^[\w-]+_$/.test(name)).join(" ");
    span.append(...nodesOf(node));
    return span;
  });
}
