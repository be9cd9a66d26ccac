// Puts the state on the page. Reads the state, never changes it.

import { byId, element, fill } from "./dom.js";
import { plain, refusal, refusals, sections, summary } from "./results.js";
import { title, shortened, write } from "./snippets.js";
import { heatMap, widthTable } from "./tables.js";
import { panel } from "./timing.js";

const FLOAT_BYTES = 4;

let newestTurn = 0;

/** Show results, tables, the request and the panel. */
export function draw(state, actions, wholeRequest) {
  if (!state.model) return;
  const { model } = state;
  byId("model").textContent = `${model.id} from ${model.source}, ${model.dimensions} dimensions`;
  byId("gallery-count").textContent = state.gallery.length || "";
  byId("own-count").textContent = state.own.length || "";
  byId("own-tools").hidden = !state.useOwn;
  const entries = (state.useOwn ? state.own : state.gallery).filter((entry) => entry.vector);
  const images = state.queryImages.filter((entry) => entry.vector);
  const queries = [
    ...state.answered,
    ...images.map(({ name, vector, url }) => ({ label: name, vector, url })),
  ];
  drawProgress(state.useOwn ? state.own : state.gallery);
  drawResults(state, actions, queries, entries);
  drawTables(state, queries, entries);
  const isAsked = state.view === "classify" ? state.classified !== null : queries.length > 0;
  byId("request-card").hidden = !isAsked;
  if (isAsked) drawSnippet(state, wholeRequest);
  if (state.exchange) fill(byId("timing"), ...panel(state.exchange));
}

function drawResults(state, actions, queries, entries) {
  const all = state.useOwn ? state.own : state.gallery;
  const refused = all.filter((entry) => entry.fault);
  const options = { width: state.width, expanded: state.expanded, ...actions };
  const isRanked = queries.length > 0 && entries.length > 0;
  const ranked = isRanked ? sections(queries, entries, options) : [];
  const unranked = isRanked ? [] : all.filter((entry) => !entry.fault);
  const rest = [plain(unranked, actions.searchWith), refusals(refused)];
  fill(byId("results"), ...ranked, ...rest.filter((list) => list.childElementCount));
  say(isRanked ? summary(queries, entries, state.width) : { seen: emptyState(state, queries) });
}

function emptyState(state, queries) {
  if (!state.model.modalities.includes("image")) {
    return "This server embeds texts only; there are no images to rank.";
  }
  if (state.useOwn && !state.own.length) return "No images of yours yet. Add some, or drop them here.";
  if (queries.length) return "Waiting for the vectors of the images.";
  return "Type a text, or choose an image, to rank these.";
}

/** Change the live region only where its words change, or screen readers repeat themselves. */
function say({ seen, read = "" }) {
  const status = byId("status");
  if (status.textContent === seen + read) return;
  status.replaceChildren(seen, element("span", { class: "hidden" }, read));
}

function drawTables(state, queries, entries) {
  const isEmpty = !queries.length || !entries.length;
  byId("heat-card").hidden = isEmpty;
  byId("widths-card").hidden = isEmpty;
  if (isEmpty) return;
  fill(byId("heat"), heatMap(queries, entries, state.width));
  fill(byId("widths"), widthTable(queries, entries, state.widths, state.width));
}

async function drawSnippet(state, wholeRequest) {
  const language = document.querySelector("input[name=snippet]:checked").value;
  const turn = ++newestTurn;
  const body = await wholeRequest();
  if (turn !== newestTurn) return; // reading images took longer than the next change
  byId("snippet").textContent = write(language, shortened(body), state.hasKey);
  byId("copy").textContent = `Copy as ${title(language)}`;
  byId("copy").onclick = () => copy(write(language, body, state.hasKey));
  byId("copied").textContent = "";
  byId("snippet-note").textContent = body.input.some((item) => item.image)
    ? "Images are shortened here and copied whole."
    : "";
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // the clipboard API needs https or this machine
  }
  byId("copied").textContent = "Copied.";
}

function copyBySelection(text) {
  const field = element("textarea", { class: "hidden", "aria-hidden": "true" });
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
  byId("copy").focus();
}

/** Show how many of the chosen images have vectors, until all have. */
function drawProgress(entries) {
  const done = entries.filter((entry) => entry.vector || entry.fault).length;
  byId("progress").hidden = done === entries.length;
  byId("progress-bar").value = entries.length ? done / entries.length : 0;
  byId("progress-text").textContent = `Embedding the images: ${done} of ${entries.length}`;
}

/** Show the images that are searched with. */
export function drawQueries(entries, { removeQuery }) {
  fill(byId("query-images"), ...entries.map((entry) =>
    element("li", { class: entry.fault ? "chip refused" : "chip" },
      element("img", { src: entry.url, alt: "", width: 40, height: 40 }),
      entry.fault ? refusal(entry) : element("span", { dir: "auto" }, entry.name),
      element("button", {
        type: "button", class: "quiet", "aria-label": `Remove ${entry.name}`,
        click: () => removeQuery(entry),
      }, "\u00d7"))));
}

/** Show the chosen width and what it saves. */
export function drawWidth({ widths, width, model }) {
  const slider = byId("width");
  slider.disabled = widths.length < 2;
  slider.max = widths.length - 1;
  slider.value = widths.indexOf(width);
  slider.setAttribute("aria-valuetext", `${width} of ${model.dimensions}`);
  byId("width-value").textContent = width;
  const share = width === model.dimensions ? "full" : `of ${model.dimensions}`;
  byId("width-note").textContent = `${share}, ${(FLOAT_BYTES * width).toLocaleString("en")} bytes a vector`;
  fill(byId("width-marks"), ...widths.map((one) =>
    element("span", { class: one === width ? "chosen" : null }, `${one}`)));
}

/** Show an error as the API says it; null takes it away. */
export function showProblem(error) {
  byId("problem").hidden = error === null;
  if (error === null) return;
  byId("problem-detail").textContent = error.message || "The server cannot be reached.";
  byId("problem-code").textContent = error.code ?? error.name;
  byId("problem-id").textContent = error.requestId ? `request ${error.requestId}` : "";
}
