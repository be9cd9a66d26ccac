// The HTTP API as the page uses it. Addresses are relative, so a route prefix changes nothing.

export class ApiError extends Error {
  constructor(status, body, requestId) {
    super(body.detail ?? `The server answered ${status}.`);
    this.status = status;
    this.code = body.code ?? `HTTP ${status}`;
    this.requestId = body.request_id || requestId;
  }
}

export class Api {
  key = "";

  /** The model that is served. */
  async model() {
    const response = await this.#send("v1/models", {});
    return (await response.json()).data[0];
  }

  /** Embed a request's input: one Float32Array per item, or null with a fault, in its order. */
  async embed(body, signal) {
    const { answer, exchange } = await this.#post("v1/embeddings", body, signal);
    const vectors = answer.data.map((row) => row.embedding && decode(row.embedding));
    const faults = new Map((answer.errors ?? []).map((fault) => [fault.index, fault]));
    return { vectors, faults, exchange };
  }

  /** Score a request's labels: one entry per item, in its order. */
  async classify(body, signal) {
    const { answer, exchange } = await this.#post("v1/classify", body, signal);
    return { data: answer.data, exchange };
  }

  async #post(path, body, signal) {
    const startMs = performance.now();
    const response = await this.#send(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    const answer = await response.json();
    return { answer, exchange: exchange(response, answer, performance.now() - startMs) };
  }

  async #send(path, options) {
    const headers = { ...options.headers };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    const body = await response.json().catch(() => ({}));
    throw new ApiError(response.status, body, response.headers.get("x-request-id"));
  }
}

/** What an answer says about itself, for the panel. */
function exchange(response, answer, roundTripMs) {
  const header = (name) => response.headers.get(name) ?? "";
  return {
    roundTripMs,
    stages: stages(header("server-timing")),
    requestId: header("x-request-id"),
    fingerprint: header("x-embedding-fingerprint"),
    replicas: header("x-embedding-replicas"),
    usage: answer.usage,
    numItems: answer.data.length,
  };
}

/** Read `name;dur=1.5, ...` into a list of names and milliseconds. */
function stages(header) {
  const found = header.matchAll(/([^\s;,]+)\s*;\s*dur=([\d.]+)/g);
  return [...found].map(([, name, duration]) => ({ name, ms: Number(duration) }));
}

/** Vectors come as numbers, or as the base64 of little-endian float32. */
function decode(embedding) {
  return typeof embedding === "string" ? fromBase64(embedding) : Float32Array.from(embedding);
}

export function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

export function toBase64(vector) {
  const view = new DataView(new ArrayBuffer(4 * vector.length));
  vector.forEach((value, i) => view.setFloat32(4 * i, value, true));
  return btoa(Array.from(new Uint8Array(view.buffer), (x) => String.fromCharCode(x)).join(""));
}
