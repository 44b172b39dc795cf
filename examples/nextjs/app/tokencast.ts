// Requests from this server to Tokencast. The key stays here: only route handlers import this file.

const url = process.env.TOKENCAST_URL ?? "http://127.0.0.1:8000";
const authorization = `Bearer ${process.env.TOKENCAST_API_KEY ?? "unused"}`;

export function tokencast(path: string, init: RequestInit & { headers?: Record<string, string> } = {}): Promise<Response> {
  return fetch(url + path, { ...init, cache: "no-store", headers: { ...init.headers, authorization } });
}
