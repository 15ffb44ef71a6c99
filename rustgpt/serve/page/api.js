// Owns what the page says to the server, and how it reads the answers.

export class Refused extends Error {
  constructor(status, error) {
    super(error.message || `HTTP ${status}`);
    this.status = status;
    this.code = error.code;
  }
}

async function ask(path, key, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal };
  if (body) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  const response = await fetch(path, options);
  if (response.ok) return response;
  let error = {};
  try { error = (await response.json()).error; } catch { /* no JSON: the status tells enough */ }
  throw new Refused(response.status, error || {});
}

export async function isReady() {
  return (await fetch("/health")).ok;
}

export async function model(key) {
  return (await (await ask("/v1/models", key)).json()).data[0];
}

export async function count(key, messages) {
  return (await (await ask("/tokenize", key, { messages })).json()).count;
}

// Yields the chunks of an answer; `onHead` gets the headers first.
export async function* stream(key, body, signal, onHead) {
  const response = await ask("/v1/chat/completions", key, { ...body, stream: true }, signal);
  onHead(response.headers);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(500, chunk.error);
      yield chunk;
    }
  }
}
