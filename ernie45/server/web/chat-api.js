// The server: its key, its state, its errors and its streams. Knows nothing about conversations.

const KEY = "ernie45.api_key";   // the dashboard uses the same; in this tab only, and in no address
let keyInMemory = "";

export function apiKey() { try { return sessionStorage.getItem(KEY) ?? ""; } catch { return keyInMemory; } }
export function setApiKey(key) {
  keyInMemory = key;
  try { if (key) sessionStorage.setItem(KEY, key); else sessionStorage.removeItem(KEY); } catch { /* kept in memory */ }
}

/** An answer that is no answer. kind: key, busy, away, refused, broken or failed. after: seconds to wait, if the server said. */
export class ServerError extends Error {
  constructor(kind, message, after = null) {
    super(message);
    this.kind = kind;
    this.after = after;
  }
}

export function authorized(headers = {}) {
  const key = apiKey();
  return key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
}

/** A response that is fine; ServerError for any other. An abort stays an AbortError. */
export async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers: authorized(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("away", "The server cannot be reached.");
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try { message = (await response.json()).error.message; } catch { /* no body of ours: a proxy's perhaps */ }
  const header = response.headers.get("Retry-After"), after = header !== null && /^\d+$/.test(header) ? Number(header) : null;
  const kinds = { 401: "key", 403: "key", 429: "busy", 502: "away", 503: "away" };
  throw new ServerError(kinds[response.status] ?? (response.status < 500 ? "refused" : "failed"), message, after);
}

export async function post(path, body, signal) {
  return call(path, { method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

/** The events of a stream. ServerError "broken" if it ends before it says that it has. */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let chunk;
    try { chunk = await reader.read(); } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("broken", "The connection broke.");
    }
    if (chunk.done) throw new ServerError("broken", "The connection ended before the answer did.");
    const blocks = (rest + chunk.value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block === "data: [DONE]") return;
      if (!block.startsWith("data: ")) continue;
      const event = JSON.parse(block.slice(6));
      if (event.error) throw new ServerError("broken", event.error.message);
      yield event;
    }
  }
}

/** {state, models}: state as /ready says it, or "unreachable" or "locked". */
export async function serverState() {
  let response;
  try {
    response = await fetch("ready", { cache: "no-store", headers: authorized(), signal: AbortSignal.timeout(10000) });
    if (response.status === 401) return { state: "locked", models: [] };
    const state = (await response.json()).status;
    if (state !== "ready") return { state, models: [] };
    const models = (await (await call("v1/models")).json()).data.map((card) => card.id);
    return { state, models };
  } catch { return { state: "unreachable", models: [] }; }
}
