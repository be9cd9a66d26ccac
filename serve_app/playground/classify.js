// The tab that scores labels for the texts and images that are searched with.

import { byId, element, fill } from "./dom.js";

/** The labels as they are typed: one a line, without repeats. */
export const labels = () =>
  [...new Set(byId("labels").value.split("\n").map((line) => line.trim()).filter((line) => line))];

/** The request for the labels of some input. */
export const request = (model, input) =>
  ({ model: model.id, labels: labels(), logit_scale: byId("trained").checked, input });

/** Say what is missing, or an empty text where all is there. */
export function missing(input) {
  if (!input.length) return "Type a text, or choose an image, to classify.";
  if (labels().length < 2) return "Type two labels or more.";
  return "";
}

/** Show a table with a row for each item and a column for each label; null says what is missing. */
export function show(found, input) {
  byId("scores-status").textContent = found ? summary(found, input) : missing(input);
  fill(byId("scores"), ...(found ? [table(found)] : []));
}

const summary = ({ data }, input) =>
  `${input.length === 1 ? "1 item" : `${input.length} items`}, ${data[0].predictions.length} labels.`;

function table({ items, data }) {
  const names = data[0].predictions.map(({ label }) => label);
  return element("table", { class: "heat" },
    element("caption", { class: "small muted" },
      element("span", {}, "Scores of a row add up to 100%; the cosine is below each")),
    element("thead", {}, element("tr", {},
      element("td"),
      ...names.map((name) => element("th", { scope: "col", dir: "auto" }, name)))),
    element("tbody", {}, ...data.map((row, i) => element("tr", {},
      heading(items[i]), ...row.predictions.map((one) => cell(one, one.label === row.prediction))))));
}

const heading = ({ label, url }) =>
  element("th", { scope: "row", dir: "auto", title: label },
    url ? element("img", { src: url, alt: "", width: 40, height: 40 }) : null,
    element("span", {}, label));

function cell({ score, similarity }, isBest) {
  const percent = element(isBest ? "strong" : "span", {}, `${(100 * score).toFixed(1)}%`);
  const made = element("td", {}, percent,
    element("span", { class: "small muted cosine" }, similarity.toFixed(2)));
  made.style.setProperty("--heat", `${Math.round(100 * score)}%`);
  return made;
}
