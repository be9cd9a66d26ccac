// Small helpers for building the page; nothing here knows what the page is about.

export const byId = (id) => document.getElementById(id);

/** Make an element; attributes that are functions become listeners, null ones are left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Replace an element's children and keep the focus on the element of the same id. */
export function fill(parent, ...children) {
  const focused = parent.contains(document.activeElement) ? document.activeElement.id : null;
  parent.replaceChildren(...children);
  if (focused !== null) (byId(focused) ?? byId("results-title")).focus();
}

/** Call the function once things have been quiet for so many milliseconds. */
export function debounced(delayMs, call) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(call, delayMs);
  };
}

/** The image files of a drop, a paste or an input. */
export const imageFiles = (list) => [...(list ?? [])].filter((file) => file.type.startsWith("image/"));

/** Take images that are dropped on an element. */
export function onDrop(target, take) {
  let depth = 0; // dragenter and dragleave also come from the children
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    target.classList.toggle("dropping", depth > 0);
  };
  target.addEventListener("dragenter", () => mark(1));
  target.addEventListener("dragleave", () => mark(-1));
  target.addEventListener("drop", (event) => {
    mark(-depth);
    take(imageFiles(event.dataTransfer.files));
  });
}
