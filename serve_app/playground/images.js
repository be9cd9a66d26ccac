// Images and their vectors: the gallery's, embedded once a tab, and the user's own.

import { ApiError, fromBase64, toBase64 } from "./api.js";

const CHUNK_ITEMS = 16;
const CHUNK_CHARACTERS = 4_000_000;
const MAX_RETRIES = 4;
const BUSY_WAIT_MS = 1500;

const underway = new Set(); // entries that a request is out for
let numOwn = 0;

/** Read the gallery's list; the images themselves are read when they are embedded. */
export async function gallery() {
  const response = await fetch("gallery.json");
  if (!response.ok) throw new ApiError(response.status, {}, null);
  return (await response.json()).map(({ file, names }) => {
    const url = `gallery/${file}`;
    const read = async () => dataUri(await (await fetch(url)).blob());
    return { id: file, name: names.en, url, read, vector: null, fault: null };
  });
}

/** Make an entry of a file that was dropped, pasted or chosen. */
export function own(file) {
  numOwn += 1;
  const read = () => dataUri(file);
  const name = file.name || `image ${numOwn}`;
  return { id: `own-${numOwn}`, name, url: URL.createObjectURL(file), read, vector: null, fault: null };
}

/**
 * Embed the entries that have no vector yet, some at a time; `progress` is called after each.
 * An image that the server refuses gets a `fault` and does not fail the others.
 */
export async function embed(entries, api, model, priority, progress) {
  const waiting = entries.filter((x) => !x.vector && !x.fault && !underway.has(x));
  waiting.forEach((entry) => underway.add(entry));
  try {
    await embedAll([...waiting], api, model, priority, progress);
  } finally {
    waiting.forEach((entry) => underway.delete(entry));
  }
}

async function embedAll(waiting, api, model, priority, progress) {
  while (waiting.length) {
    const chunk = await nextChunk(waiting, model);
    const body = {
      model: model.id,
      input: chunk.map(({ image }) => ({ image })),
      embedding_type: "base64",
      errors: "partial",
      priority,
    };
    const { vectors, faults, exchange } = await oneByOne(chunk, () => api.embed(body));
    chunk.forEach(({ entry }, i) => {
      entry.vector = vectors[i];
      entry.fault = faults.get(i) ?? null;
    });
    progress(exchange);
  }
}

async function nextChunk(waiting, model) {
  const chunk = [];
  let size = 0;
  const most = Math.min(CHUNK_ITEMS, model.limits.max_items_per_request);
  while (waiting.length && chunk.length < most) {
    const image = await waiting[0].read();
    size += image.length;
    if (chunk.length && size > CHUNK_CHARACTERS) break;
    chunk.push({ entry: waiting.shift(), image });
  }
  return chunk;
}

/** Where one image is all of a request that is too large, it is the image's fault. */
async function oneByOne(chunk, call) {
  try {
    return await patiently(call);
  } catch (error) {
    if (chunk.length > 1 || error.status !== 413) throw error;
    const fault = { code: error.code, message: error.message };
    return { vectors: [null], faults: new Map([[0, fault]]), exchange: null };
  }
}

/** Try again for a while where the server says that it is busy. */
async function patiently(call) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await call();
    } catch (error) {
      const busy = error instanceof ApiError && [429, 503].includes(error.status);
      if (!busy || attempt === MAX_RETRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, BUSY_WAIT_MS));
    }
  }
}

/** Take vectors that this tab has stored for the same weights. */
export function restore(entries, model) {
  const stored = JSON.parse(sessionStorage.getItem(storeKey(model)) ?? "{}");
  for (const entry of entries) if (stored[entry.id]) entry.vector = fromBase64(stored[entry.id]);
}

/** Keep the vectors for this tab; without a fingerprint nobody could tell whose they are. */
export function store(entries, model) {
  if (!model.fingerprints.vision) return;
  const vectors = entries.filter((x) => x.vector).map((x) => [x.id, toBase64(x.vector)]);
  try {
    sessionStorage.setItem(storeKey(model), JSON.stringify(Object.fromEntries(vectors)));
  } catch {
    sessionStorage.clear(); // full: the vectors stay in memory
  }
}

const storeKey = (model) => `vectors ${model.source} ${model.fingerprints.vision}`;

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
