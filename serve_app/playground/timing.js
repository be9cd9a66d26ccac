// The panel about the last answer: its stages, its id, what it cost, who answered.

import { element } from "./dom.js";

// Stages of the header Server-Timing in the order of a request; `part` lies within the one above.
const STAGES = {
  parse: { label: "Read the request" },
  tokenise: { label: "Cut texts into tokens" },
  fetch: { label: "Fetch images" },
  towers: { label: "Towers" },
  queue: { label: "waiting for a batch", part: true },
  device: { label: "on the device", part: true },
  render: { label: "Write the answer" },
};

export function panel(exchange) {
  const order = Object.keys(STAGES);
  const place = (name) => (order.includes(name) ? order.indexOf(name) : order.length);
  const stages = [...exchange.stages].sort((a, b) => place(a.name) - place(b.name));
  return [
    element("table", { class: "stages" },
      element("caption", { class: "hidden" }, "Milliseconds by stage"),
      element("tbody", {},
        ...stages.map(({ name, ms }) => row(STAGES[name] ?? { label: name }, ms, exchange)),
        row({ label: "Seen from here", total: true }, exchange.roundTripMs, exchange))),
    element("dl", { class: "facts" }, ...facts(exchange)),
  ];
}

function row({ label, part, total }, ms, { roundTripMs }) {
  const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("span"));
  bar.firstChild.style.setProperty("--share", Math.min(1, ms / roundTripMs).toFixed(3));
  return element("tr", { class: part ? "part" : total ? "total" : null },
    element("th", { scope: "row" }, label), element("td", {}, bar),
    element("td", { class: "number" }, `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`));
}

function facts({ usage, numItems, requestId, replicas, fingerprint }) {
  const entries = {
    Items: `${numItems}`,
    Tokens: usage ? usage.total_tokens.toLocaleString("en") : "",
    "Request id": requestId,
    Replicas: replicas,
    Fingerprint: fingerprint,
  };
  return Object.entries(entries).filter(([, value]) => value)
    .flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
}
