// The heat map of queries against images, and what narrower vectors keep of the ranking.

import { element } from "./dom.js";
import { cosine, kept, rank } from "./ranking.js";

const NUM_COLUMNS = 12;
const DEPTH = 10;

/** Build a table with one row per query and the best images as columns. */
export function heatMap(queries, entries, width) {
  const columns = bestOf(queries, entries, width);
  const scores = queries.map(({ vector }) => columns.map((x) => cosine(vector, x.vector, width)));
  const low = Math.min(...scores.flat()), high = Math.max(...scores.flat());
  return element("table", { class: "heat" },
    element("caption", { class: "small muted" },
      element("span", {},
        `Cosine at width ${width}, from ${low.toFixed(2)} (pale) to ${high.toFixed(2)} (strong)`)),
    element("thead", {}, element("tr", {},
      element("td"), ...columns.map((entry) => element("th", { scope: "col" },
        element("img", { src: entry.url, alt: "", width: 40, height: 40 }),
        element("span", { dir: "auto", title: entry.name }, entry.name))))),
    element("tbody", {}, ...queries.map((query, i) => element("tr", {},
      rowHeading(query),
      ...scores[i].map((score) => heatCell(score, (score - low) / (high - low || 1)))))));
}

const rowHeading = ({ label }) =>
  element("th", { scope: "row", dir: "auto", title: label }, element("span", {}, label));

function heatCell(score, heat) {
  const cell = element("td", {}, score.toFixed(2));
  cell.style.setProperty("--heat", `${Math.round(100 * heat)}%`);
  return cell;
}

/** The images at the head of each ranking in turn, without repeats. */
function bestOf(queries, entries, width) {
  const rankings = queries.map(({ vector }) => rank(vector, entries, width));
  const chosen = new Set();
  for (let place = 0; place < entries.length && chosen.size < NUM_COLUMNS; place++) {
    for (const ranking of rankings) {
      if (chosen.size < NUM_COLUMNS) chosen.add(ranking[place].entry);
    }
  }
  return [...chosen];
}

/** Build a table of how much of each query's first ten is kept at each width. */
export function widthTable(queries, entries, widths, chosen) {
  const depth = Math.min(DEPTH, entries.length);
  return element("table", { class: "widths" },
    element("caption", { class: "small muted" },
      element("span", {},
        `How many of the first ${depth} at full width are still among the first ${depth}`)),
    element("thead", {}, element("tr", {},
      element("th", { scope: "col" }, "Width"),
      ...widths.map((width) => element("th", {
        scope: "col", class: width === chosen ? "chosen" : null,
      }, `${width}`)))),
    element("tbody", {}, ...queries.map((query) => element("tr", {},
      rowHeading(query),
      ...widths.map((width) => element("td", { class: width === chosen ? "chosen" : null },
        `${kept(query.vector, entries, width, depth)}`))))));
}
