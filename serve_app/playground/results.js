// The ranked images of each query.

import { element } from "./dom.js";
import { rank } from "./ranking.js";

const NUM_SHOWN_ALONE = 12;
const NUM_SHOWN = 6;
const NUM_READ_OUT = 3;

/**
 * Build one section per query.
 *
 * @param queries entries with `label`, `vector`, and for images `url`
 * @param entries images with vectors
 * @param options `width`, `expanded` (places of queries shown whole), `expand`, `searchWith`
 */
export function sections(queries, entries, options) {
  const most = queries.length === 1 ? NUM_SHOWN_ALONE : NUM_SHOWN;
  return queries.map((query, place) => {
    const ranked = rank(query.vector, entries, options.width);
    const isWhole = options.expanded.has(place);
    const shown = isWhole ? ranked : ranked.slice(0, most);
    const best = Math.max(ranked[0]?.score ?? 1, Number.EPSILON);
    return element("section", { class: "ranking", "aria-label": query.label },
      element("header", { class: "head" }, heading(query),
        ranked.length > most ? more(place, ranked.length, isWhole, options.expand) : null),
      element("ol", { class: "grid" },
        ...shown.map((one, i) => card(one, i, best, `card-${place}-${one.entry.id}`, options))));
  });
}

/** Images that are not ranked, because nothing is asked or their vectors are on the way. */
export function plain(entries, searchWith) {
  return element("ol", { class: "grid plain" }, ...entries.map((entry) =>
    element("li", {},
      image(entry, `plain-${entry.id}`, searchWith),
      element("span", { class: "name", dir: "auto" }, entry.name))));
}

/** Images that the server refused, and why. */
export function refusals(entries) {
  return element("ul", { class: "chips" }, ...entries.map((entry) =>
    element("li", { class: "chip refused" }, refusal(entry))));
}

/** What the server says about an image that it refused. */
export const refusal = (entry) =>
  element("span", { dir: "auto" }, `${entry.name}: ${entry.fault.message} `,
    element("code", {}, entry.fault.code));

/** The status line: how many are ranked, and for screen readers which are first. */
export function summary(queries, entries, width) {
  const firsts = queries.slice(0, NUM_READ_OUT).map((query) => {
    const [first] = rank(query.vector, entries, width);
    return `${isolated(query.label)}: ${isolated(first.entry.name)}, ${first.score.toFixed(2)}`;
  });
  return {
    seen: `${entries.length} images ranked at width ${width}.`,
    read: ` First for ${firsts.join("; ")}.`,
  };
}

/** Keep right-to-left words from turning the sentence around them. */
const isolated = (text) => `\u2068${text}\u2069`;

function heading(query) {
  if (!query.url) return element("h3", { dir: "auto" }, query.label);
  return element("h3", { class: "with-image" },
    element("img", { src: query.url, alt: "", width: 32, height: 32 }),
    element("span", { dir: "auto" }, `Like ${query.label}`));
}

function card({ entry, score, rise }, place, best, id, options) {
  const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("span"));
  bar.firstChild.style.setProperty("--share", Math.max(0, score / best).toFixed(3));
  return element("li", {},
    image(entry, id, options.searchWith),
    element("span", { class: "name", dir: "auto", title: entry.name }, entry.name),
    element("span", { class: "line" },
      element("span", { class: "place" }, `${place + 1}`),
      movement(rise),
      element("span", { class: "score" }, score.toFixed(3))),
    bar);
}

function image(entry, id, searchWith) {
  return element("button", {
    id, class: "image", type: "button",
    "aria-label": `Search with ${entry.name}`, title: "Search with this image",
    click: () => searchWith(entry),
  }, element("img", { src: entry.url, alt: "", width: 128, height: 128, decoding: "async" }));
}

function movement(rise) {
  if (!rise) return element("span");
  const places = Math.abs(rise);
  const way = rise > 0 ? "up" : "down";
  return element("span", { class: `move ${way}` },
    element("span", { "aria-hidden": "true" }, `${rise > 0 ? "\u2191" : "\u2193"}${places}`),
    element("span", { class: "hidden" }, `${way} ${places} from the full width`));
}

function more(place, total, isWhole, expand) {
  return element("button", {
    id: `more-${place}`, type: "button", class: "quiet", "aria-expanded": String(isWhole),
    click: () => expand(place),
  }, isWhole ? "Show fewer" : `Show all ${total}`);
}
