"use client";

import { useEffect, useState, type FormEvent } from "react";

// The id is in the address, so a reload and a shared link show the same answer.
const idInAddress = () => new URLSearchParams(location.search).get("answer") ?? "";

export default function Page() {
  const [id, setId] = useState("");
  const [error, setError] = useState("");
  const { text, status } = useAnswer(id);

  useEffect(() => setId(idInAddress()), []);

  async function ask(event: FormEvent<HTMLFormElement>) {
    event.preventDefault();
    const question = new FormData(event.currentTarget).get("question");
    const response = await fetch("/api/answers", {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": crypto.randomUUID() },
      body: JSON.stringify({ question }),
    });
    const answer = await response.json();
    setError(response.ok ? "" : answer.error.message);
    if (!response.ok) return;
    history.pushState(null, "", `?answer=${answer.id}`);
    setId(answer.id);
  }

  return (
    <main>
      <form onSubmit={ask}>
        <input name="question" defaultValue="Explain the GIL in CPython." size={60} />
        <button>Ask</button>
      </form>
      <p role="status">{error || status}</p>
      <pre>{text}</pre>
    </main>
  );
}

/** The text of an answer as it grows. `EventSource` reconnects by itself. */
function useAnswer(id: string) {
  const [answer, setAnswer] = useState({ text: "", status: "" });
  useEffect(() => {
    setAnswer({ text: "", status: "" });
    if (!id) return;
    const source = new EventSource(`/api/answers/${id}/events`);
    const on = (name: string, change: (data: any, text: string) => string, status = name) =>
      source.addEventListener(name, ({ data }) =>
        setAnswer(({ text }) => ({ text: change(JSON.parse(data), text), status })),
      );
    on("created", (_, text) => text, "waiting");
    on("started", () => "", "running");
    on("reset", () => "", "running"); // another attempt: the text so far is void
    on("chunk", (chunk, text) => text + (chunk.choices[0]?.delta.content ?? ""), "running");
    for (const ending of ["completed", "failed", "cancelled", "gone"]) {
      on(ending, (_, text) => text);
      source.addEventListener(ending, () => source.close());
    }
    return () => source.close();
  }, [id]);
  return answer;
}
