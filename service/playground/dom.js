// Elements, messages, and actions of which only the newest counts.

const parked = new DocumentFragment(); // what is not part of the page now, and may be again

export const byId = (id) => document.getElementById(id) ?? parked.getElementById(id);

/** Take an element out of the page, for byId alone to find. */
export const park = (element) => parked.append(element);

/** Make an element with these properties and children (nodes or text). */
export function el(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

/** Make an SVG element with these attributes. */
export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Fill a list of terms: `facts` is [[term, text], ...]. */
export function showFacts(list, facts) {
  list.replaceChildren(...facts.map(([term, text]) => el("div", {}, el("dt", {}, term), el("dd", {}, text))));
}

/** A seed that a person may want to note down. */
export const newSeed = () => Math.floor(Math.random() * 1e6);

/** A number as people read it: four significant digits, without the noise of floats. */
export function number(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-4)) return value.toExponential(2);
  return String(Number(value.toPrecision(size >= 1000 ? Math.ceil(Math.log10(size + 1)) : 4)));
}

/** A share as people read it. */
export const percent = (share) => `${Number((100 * share).toPrecision(2))} %`;

/** What people are told went wrong; any other error is a defect of this page. `passing`: it may be gone when tried again. */
export class Problem extends Error {
  passing = false;
}

let owner = null; // whose message is shown

/** Show a message until the same owner clears it; with `again`, a button offers to try again. */
export function say(text, of, again) {
  owner = of;
  const message = byId("message");
  message.replaceChildren(text);
  if (again) message.append(el("button", { type: "button", onclick: again }, "Try again"));
}

/** Take away the message of an owner. */
export function unsay(of) {
  if (owner === of) byId("message").replaceChildren();
}

/** Wait. Rejects when the signal aborts. */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)));
  });
}

const running = new Set(); // AbortControllers

/** Abort every action, and take away what was said of them. */
export function stopAll() {
  for (const controller of running) controller.abort();
  unsay(owner);
}

/**
 * Make a function whose newest call aborts those before it, `delay` seconds after it was called; so does its `stop()`.
 * `action` is given an AbortSignal and the arguments; a Problem that it throws is shown. Meanwhile the element with the
 * id `busy` is marked so.
 */
export function latest(action, { delay = 0, busy } = {}) {
  let newest = null;
  const stop = () => {
    newest?.abort();
    if (busy) byId(busy).ariaBusy = "false";
  };
  const run = async (...given) => {
    stop();
    const controller = (newest = new AbortController()), { signal } = controller;
    running.add(controller);
    if (busy) byId(busy).ariaBusy = "true";
    try {
      if (delay) await pause(delay, signal);
      await action(signal, ...given);
      unsay(action);
    } catch (error) {
      if (signal.aborted) return;
      say(error.message, action, error.passing && (() => (unsay(action), run(...given))));
      if (!(error instanceof Problem)) throw error;
    } finally {
      running.delete(controller);
      if (busy && newest === controller) byId(busy).ariaBusy = "false";
    }
  };
  return Object.assign(run, { stop });
}

/** Bring the part of the page with this heading into view, and go on there with the keyboard. */
export function goTo(heading) {
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
  heading.scrollIntoView();
}

/** Let files be chosen in an input, dropped on an element, and pasted where `pastes()` says so. */
export function onFile(input, target, take, pastes = () => false) {
  input.addEventListener("change", () => {
    if (input.files[0]) take(input.files[0]);
    input.value = ""; // so that the same file can be chosen again
  });
  target.addEventListener("dragover", (event) => (event.preventDefault(), target.classList.add("over")));
  target.addEventListener("dragleave", () => target.classList.remove("over"));
  target.addEventListener("drop", (event) => {
    event.preventDefault();
    target.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    if (pastes() && event.clipboardData.files[0]) take(event.clipboardData.files[0]);
  });
}

/** Show the value of a range in the element behind it, as `text` writes it. */
export function showValue(range, text = (value) => value) {
  const show = () => (range.nextElementSibling.textContent = range.ariaValueText = text(range.value));
  range.addEventListener("input", show);
  show();
}

/** Let a browser save a text as a file. */
export function save(name, text, type) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
