// The page's state, and what changes it. Vectors are asked for at full width and cut here, as the
// server cuts them, so the slider costs no request.

import { Api } from "./api.js";
import * as classify from "./classify.js";
import { byId, debounced, imageFiles, onDrop } from "./dom.js";
import * as images from "./images.js";
import { draw, drawQueries, drawWidth, showProblem } from "./view.js";

const TYPING_MS = 250;
const TASK = "retrieval.query";
const UNAUTHORIZED = 401;
const LABEL_CHARACTERS = 120;

const api = new Api();
const state = {
  model: null,
  widths: [],
  width: 0,
  gallery: [],
  own: [],
  useOwn: false,
  queryImages: [], // entries to search with
  answered: [], // texts and their vectors, as of the newest answer
  expanded: new Set(),
  exchange: null,
  view: "search",
  classified: null, // items and their labels, as of the newest answer
  hasKey: false,
};
const actions = { searchWith, expand, removeQuery };
const problems = new Map(); // the newest error of each kind of work
let underway = new AbortController();

async function start() {
  await guarded("server", async () => {
    state.model = await api.model();
    state.hasKey = api.key !== "";
    const { dimensions, matryoshka_dimensions: narrower } = state.model;
    state.widths = [...new Set([...narrower, dimensions])].sort((a, b) => a - b);
    state.width = dimensions;
    drawWidth(state);
    refresh();
  });
  if (!state.model) return;
  ask();
  embedMore([...state.own, ...state.queryImages]);
  await guarded("gallery", fillGallery);
}

async function fillGallery() {
  if (!state.model.modalities.includes("image")) return;
  if (!state.gallery.length) state.gallery = await images.gallery();
  images.restore(state.gallery, state.model);
  refresh();
  await images.embed(state.gallery, api, state.model, "bulk", refresh); // searches go first
  images.store(state.gallery, state.model);
}

/** Ask for what is typed now, in the chosen view. */
const ask = () => (state.view === "classify" ? classifyNow() : search());

/** Ask for the labels' scores of the texts and images as they are now. */
async function classifyNow() {
  underway.abort();
  underway = new AbortController();
  const { signal } = underway;
  if (!state.model) return;
  const items = [
    ...currentTexts().map((text) => ({ label: brief(text), read: async () => ({ text }) })),
    ...state.queryImages.filter((entry) => !entry.fault).map((entry) => ({
      label: entry.name, url: entry.url, read: async () => ({ image: await entry.read() }),
    })),
  ];
  await guarded("classify", async () => {
    const input = await Promise.all(items.map((item) => item.read()));
    const isReady = !classify.missing(items);
    const answer = isReady && await api.classify(classify.request(state.model, input), signal);
    if (signal.aborted) return;
    state.classified = answer ? { items, input, data: answer.data } : null;
    state.exchange = answer ? answer.exchange : state.exchange;
    classify.show(state.classified, items);
    refresh();
  }, signal);
}

/** Ask for the texts as they are now; an answer to older ones is dropped. */
async function search() {
  underway.abort();
  underway = new AbortController();
  const { signal } = underway;
  const texts = currentTexts();
  if (!state.model) return;
  await guarded("search", async () => {
    if (!texts.length) return take([], null);
    const { vectors, exchange } = await api.embed(request(texts.map((text) => ({ text }))), signal);
    const answered = texts.map((text, i) => ({ text, label: brief(text), vector: vectors[i] }));
    if (!signal.aborted) take(answered, exchange);
  }, signal);
}

function take(answered, exchange) {
  state.answered = answered;
  state.exchange = exchange ?? state.exchange;
  state.expanded.clear();
  refresh();
}

const request = (input) => ({ model: state.model.id, task: TASK, input });

/** The request for everything that is searched with, at the chosen width. */
async function wholeRequest() {
  if (state.view === "classify") return classify.request(state.model, state.classified.input);
  const accepted = state.queryImages.filter((entry) => entry.vector);
  const encoded = await Promise.all(accepted.map((entry) => entry.read()));
  const texts = state.answered.map(({ text }) => ({ text }));
  const body = request([...texts, ...encoded.map((image) => ({ image }))]);
  return state.width < state.model.dimensions ? { ...body, dimensions: state.width } : body;
}

const currentTexts = () =>
  byId("texts").value.split("\n").map((line) => line.trim()).filter((line) => line);

/** A text short enough for a heading. */
function brief(text) {
  const characters = [...text];
  return characters.length > LABEL_CHARACTERS
    ? `${characters.slice(0, LABEL_CHARACTERS).join("")}...` : text;
}

const refresh = () => draw(state, actions, wholeRequest);

/** Run something that asks the server, and show what the server says if it refuses. */
async function guarded(kind, work, signal) {
  try {
    await work();
    problems.delete(kind);
  } catch (error) {
    if (signal?.aborted) return;
    problems.delete(kind); // to the end: the newest is shown
    problems.set(kind, error);
    if (error.status === UNAUTHORIZED) askForKey();
  }
  showProblem([...problems.values()].at(-1) ?? null);
}

function askForKey() {
  byId("key-form").hidden = false;
  byId("key").focus();
}

async function searchWith(entry) {
  if (state.queryImages.includes(entry)) return;
  state.queryImages.push(entry);
  drawQueries(state.queryImages, actions);
  await embedMore([entry]);
  if (state.view === "classify") ask();
}

function expand(place) {
  if (!state.expanded.delete(place)) state.expanded.add(place);
  refresh();
}

function removeQuery(entry) {
  state.queryImages = state.queryImages.filter((other) => other !== entry);
  drawQueries(state.queryImages, actions);
  byId("texts").focus();
  if (state.view === "classify") ask();
  refresh();
}

const addQueries = (files) => Promise.all(files.map((file) => searchWith(images.own(file))));

async function addOwn(files) {
  if (!files.length) return;
  const added = files.map(images.own);
  state.own.push(...added);
  chooseCollection(true);
  await embedMore(added);
}

async function embedMore(entries) {
  if (!state.model) return;
  const progress = (exchange) => {
    state.exchange = exchange ?? state.exchange;
    drawQueries(state.queryImages, actions);
    refresh();
  };
  await guarded("images", () =>
    images.embed(entries, api, state.model, "interactive", progress));
}

function chooseCollection(useOwn) {
  state.useOwn = useOwn;
  document.querySelector(`input[value=${useOwn ? "own" : "gallery"}]`).checked = true;
  refresh();
}

function clearQueries() {
  byId("texts").value = "";
  state.queryImages = [];
  drawQueries([], actions);
  byId("texts").focus();
  ask();
}

function addExample(event) {
  if (!event.target.matches("button")) return;
  const texts = byId("texts");
  texts.value = [...currentTexts(), event.target.textContent].join("\n");
  ask();
}

function takeFiles(input, add) {
  input.addEventListener("change", () => {
    add(imageFiles(input.files));
    input.value = ""; // the same file may be chosen again
  });
}

function choose(view) {
  state.view = view;
  document.body.dataset.view = view;
  ask();
}

function listen() {
  for (const id of ["texts", "labels"]) {
    byId(id).addEventListener("input", debounced(TYPING_MS, ask));
  }
  byId("trained").addEventListener("change", ask);
  for (const choice of document.querySelectorAll("input[name=view]")) {
    choice.addEventListener("change", () => choose(choice.value));
  }
  byId("clear").addEventListener("click", clearQueries);
  document.querySelector(".examples").addEventListener("click", addExample);
  takeFiles(byId("choose"), addQueries);
  takeFiles(byId("add-own"), addOwn);
  onDrop(byId("query-card"), addQueries);
  onDrop(byId("results-card"), addOwn);
  for (const kind of ["dragover", "drop"]) {
    document.addEventListener(kind, (event) => event.preventDefault()); // never leave the page
  }
  document.addEventListener("paste", (event) => {
    const files = imageFiles(event.clipboardData?.files);
    if (files.length) event.preventDefault();
    addQueries(files);
  });
  byId("width").addEventListener("input", (event) => {
    state.width = state.widths[event.target.value];
    drawWidth(state);
    refresh();
  });
  for (const choice of document.querySelectorAll("input[name=collection]")) {
    choice.addEventListener("change", () => chooseCollection(choice.value === "own"));
  }
  for (const choice of document.querySelectorAll("input[name=snippet]")) {
    choice.addEventListener("change", refresh);
  }
  byId("remove-own").addEventListener("click", () => {
    state.own = [];
    refresh();
  });
  byId("retry").addEventListener("click", start);
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    api.key = byId("key").value.trim();
    byId("key-form").hidden = true;
    byId("texts").focus();
    start();
  });
}

listen();
start();
