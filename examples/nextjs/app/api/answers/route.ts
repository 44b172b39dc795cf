// POST /api/answers: enqueues a question. The page sends an Idempotency-Key, so that a repeated request asks once.

import { tokencast } from "../../tokencast";

export async function POST(request: Request): Promise<Response> {
  const { question } = (await request.json()) as { question: string };
  const key = request.headers.get("idempotency-key");
  const response = await tokencast("/v1/generations", {
    method: "POST",
    headers: { "content-type": "application/json", ...(key ? { "idempotency-key": key } : {}) },
    body: JSON.stringify({
      model: process.env.MODEL ?? "gabforge-coder",
      messages: [{ role: "user", content: question }],
    }),
  });
  const answer = await response.json();
  return Response.json(response.ok ? { id: answer.id } : answer, { status: response.status });
}
