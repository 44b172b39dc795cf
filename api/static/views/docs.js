// /docs: Swagger UI over /openapi.json. Event streams are shown while they arrive: Swagger UI by itself waits for the end of
// a response, and /v1/activity has none.

import { key } from "../data/gateway.js";

const SHOWN = 64 * 1024; // characters of a stream; the browser becomes slow with more
const INTERVAL = 200; // ms between two updates
const running = new Map(); // operation → AbortController of its request

const nameOf = (path, method) => `${method} ${path}`;

function stop(path, method) {
  running.get(nameOf(path, method))?.abort();
  running.delete(nameOf(path, method));
}

/** A plugin of Swagger UI. `Clear` ends a stream, and so does the next `Execute`. */
const streams = () => ({
  statePlugins: {
    spec: {
      wrapActions: {
        executeRequest: (execute, { specActions }) => (request) => {
          const { pathName, method, fetch } = request; // its fetch builds the request and decodes the response
          stop(pathName, method);
          const controller = new AbortController();
          running.set(nameOf(pathName, method), controller);
          const show = (response) => specActions.setResponse(pathName, method, response);
          const userFetch = (url, options) => following(url, { ...options, signal: controller.signal }, show);
          const streaming = (built) => fetch({ ...built, userFetch });
          return execute({ ...request, fetch: Object.assign(streaming, fetch) });
        },
        clearResponse: (clear) => (path, method) => {
          stop(path, method);
          return clear(path, method);
        },
      },
    },
  },
});

/** A plugin of Swagger UI. An operation with an id opens with that of the last created generation, if it has none yet. */
const ids = () => {
  let created = "";
  return {
    statePlugins: {
      spec: {
        wrapActions: {
          setResponse: (set) => (path, method, response) => {
            const found = method === "post" && response.headers?.["x-generation-id"];
            created = found || created;
            return set(path, method, response);
          },
        },
      },
      layout: {
        wrapActions: {
          show: (show, { specSelectors, specActions }) => (thing, shown) => {
            const opened = created && shown && thing[0] === "operations"; // not before the document is loaded
            const operation = opened && operationOf(specSelectors.specJson().toJS(), thing[2]);
            if (operation && !specSelectors.parameterValues(operation).get("path.id")) {
              specActions.changeParam(operation, "id", "path", created);
            }
            return show(thing, shown);
          },
        },
      },
    },
  };
};

/** A plugin of Swagger UI. The events of a generation are shown as a stream at first: that is what is sent by default. */
const streamsFirst = () => ({
  wrapComponents: {
    response: (Response, { React }) => (props) => {
      const stream = props.path.endsWith("/events") && props.response.hasIn(["content", "text/event-stream"]);
      return React.createElement(Response, stream ? { ...props, contentType: "text/event-stream" } : props);
    },
  },
});

/** Path and method of an operation whose path has the id of a generation; undefined for others. */
function operationOf({ paths }, operationId) {
  for (const [path, item] of Object.entries(paths)) {
    const method = Object.keys(item).find((name) => item[name].operationId === operationId);
    if (method) return /(generations|completions)\/\{id\}/.test(path) ? [path, method] : undefined;
  }
}

/** Fetches, and shows what an event stream has sent so far until it ends. */
async function following(url, options, show) {
  try {
    const response = await fetch(url, options);
    const streams = response.headers.get("content-type")?.startsWith("text/event-stream");
    return streams ? await whole(response, show) : response;
  } catch (error) {
    if (options.signal.aborted) return new Promise(() => {}); // a result would be shown
    throw error;
  }
}

async function whole(response, show) {
  const { url, status, statusText } = response;
  const head = { status, statusText, headers: Object.fromEntries(response.headers) };
  const started = performance.now();
  let text = "";
  let shown = 0;
  for await (const piece of pieces(response.body)) {
    text = clipped(text + piece);
    const now = performance.now();
    if (now - shown < INTERVAL) continue;
    shown = now;
    show({ ...head, ok: true, url, text, data: text, duration: Math.round(now - started) });
  }
  return Object.defineProperty(new Response(text || null, head), "url", { value: url });
}

async function* pieces(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

/** The end of a long text, from the beginning of an event. */
function clipped(text) {
  if (text.length <= 2 * SHOWN) return text;
  const event = text.indexOf("\n\n", text.length - SHOWN);
  return `: events before these are not shown\n\n${text.slice(event < 0 ? -SHOWN : event + 2)}`;
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const paint = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", paint);
paint();

const viewer = SwaggerUIBundle({
  url: "/openapi.json",
  domNode: document.getElementById("viewer"),
  plugins: [streams, streamsFirst, ids],
  validatorUrl: "none", // by default the document is sent to validator.swagger.io
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  filter: true,
  tryItOutEnabled: true,
  onComplete: () => key() && viewer.preauthorizeApiKey("key", key()), // the dashboard's key, from the same tab
});
