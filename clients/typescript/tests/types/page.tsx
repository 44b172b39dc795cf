// A page with strict settings and without the types of Node.js. It is compiled, not run.

import { useState, type ReactElement } from "react";
import { Client, GenerationReader, type GenerationState, type ToolCall } from "tokencast-client";
import { TokencastProvider, useClient, useGeneration, type UsedGeneration } from "tokencast-client/react";

const client = new Client({ token: async (id) => (await fetch(`/my/token/${id}`)).text() });

export function Page(): ReactElement {
  const [id, setId] = useState<string | null>(null);
  return (
    <TokencastProvider client={client}>
      <button onClick={() => setId("gen_1")}>Show</button>
      <Answer id={id} />
    </TokencastProvider>
  );
}

function Answer({ id }: { readonly id: string | null }): ReactElement {
  const generation: UsedGeneration = useGeneration(id, {
    cancel: (one) => fetch(`/my/cancel/${one}`, { method: "POST" }),
  });
  const { content, reasoning, toolCalls, status, error, waiting, connection, ended, cancel } = generation;
  const calls: readonly ToolCall[] = toolCalls;
  // @ts-expect-error -- the state cannot be changed
  generation.content = "";
  // @ts-expect-error -- an id is a string
  useGeneration(17);
  useClient().baseUrl.toUpperCase();
  return (
    <article aria-busy={!ended} data-connection={connection}>
      <details>{reasoning}</details>
      <p>{content}</p>
      {calls.map((call) => (
        <code key={call.id}>{`${call.name}(${call.arguments})`}</code>
      ))}
      <footer>{error?.message ?? waiting?.reason ?? (status === "gone" ? "deleted" : status)}</footer>
      <button onClick={() => void cancel()}>Stop</button>
    </article>
  );
}

export async function read(id: string): Promise<GenerationState> {
  const reader = new GenerationReader();
  for await (const event of client.follow(id)) reader.add(event);
  return reader.state;
}
