// The page: which model, with which key, and the view of its kind.

import { ServiceError, askJson, key } from "./api.js";
import { byId, latest, park, showFacts, showValue } from "./dom.js";
import * as images from "./images.js";
import * as tables from "./tables.js";

const picker = byId("model");
const form = byId("sample-form");
const views = { image: images, vector: tables };
const SEEDS = 1e6; // that a person may want to note down
let model;

const showModel = latest(async (signal, reference) => {
  model = { ...(await askJson(`models/${encodeURIComponent(reference)}`, { signal })), reference };
  byId("description").textContent = model.description;
  const { test } = model;
  showFacts(byId("facts"), [
    ["Version", model.version],
    ["Input", model.kind === "image" ? `${model.shape.join(" x ")} pixels` : `${model.shape[0]} columns`],
    ...(test ? [["Test likelihood", test.nats === undefined
      ? `${test.bits_per_dim.toFixed(3)} \u00b1 ${test.standard_error.toFixed(3)} bits/dim`
      : `${test.nats.toFixed(2)} \u00b1 ${test.standard_error.toFixed(2)} nats`]] : []),
    ["Licence", model.licence],
  ]);
  const { temperature } = form.elements, sections = [byId("samples"), byId(`${model.kind}-view`)];
  park(byId(model.kind === "image" ? "vector-view" : "image-view"));
  byId("main").append(...(model.kind === "image" ? sections : sections.reverse()));
  for (const section of sections) section.hidden = false;
  temperature.value = model.temperature;
  temperature.dispatchEvent(new Event("input"));
  await views[model.kind].show(model, signal);
  await sample();
});

const sample = latest(async (signal) => {
  const { temperature, seed, n } = form.elements;
  const options = { n: Number(n.value), temperature: Number(temperature.value), seed: Number(seed.value) };
  const answer = await askJson("sample", { json: { model: model.reference, ...options }, signal });
  views[model.kind].showSamples(byId("sampled"), answer);
});

const start = latest(async (signal) => {
  const { default: standard, models } = await askJson("models", { signal });
  const references = models.map(({ name, version, answers_for_name: bare }) => (bare ? name : `${name}@${version}`));
  picker.replaceChildren(...references.map((reference) => new Option(reference)));
  const wanted = new URLSearchParams(location.search).get("model");
  picker.value = references.includes(wanted) ? wanted : standard;
  byId("key-form").hidden = !key.get();
  showModel(picker.value);
});

picker.addEventListener("change", () => {
  history.replaceState(null, "", `?model=${encodeURIComponent(picker.value)}`);
  showModel(picker.value);
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key").value.trim());
  start();
});
byId("key").value = key.get();
window.addEventListener("unhandledrejection", (event) => {
  if (event.reason instanceof ServiceError) event.preventDefault(); // was shown
});
showValue(form.elements.temperature);
form.addEventListener("submit", (event) => (event.preventDefault(), sample()));
byId("new-seed").addEventListener("click", () => {
  form.elements.seed.value = Math.floor(Math.random() * SEEDS);
  sample();
});
images.listen();
tables.listen();
start();
