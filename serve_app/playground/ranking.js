// Cosines and ranks; numbers in, numbers out.

/** Cosine of the first `width` numbers: what the server returns for `dimensions: width`. */
export function cosine(a, b, width) {
  let dot = 0, aa = 0, bb = 0;
  for (let i = 0; i < width; i++) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return dot / (Math.sqrt(aa * bb) || 1);
}

/** Order entries for a query, best first, with how many places each rose against full width. */
export function rank(query, entries, width) {
  const full = order(query, entries, query.length);
  if (width === query.length) return full.map((one) => ({ ...one, rise: 0 }));
  const before = new Map(full.map(({ entry }, place) => [entry, place]));
  return order(query, entries, width).map((one, place) => ({
    ...one,
    rise: before.get(one.entry) - place,
  }));
}

/** How many of the first `depth` entries at full width are still among the first at `width`. */
export function kept(query, entries, width, depth) {
  const first = (size) => order(query, entries, size).slice(0, depth).map(({ entry }) => entry);
  const full = new Set(first(query.length));
  return first(width).filter((entry) => full.has(entry)).length;
}

function order(query, entries, width) {
  return entries
    .map((entry) => ({ entry, score: cosine(query, entry.vector, width) }))
    .sort((a, b) => b.score - a.score);
}
