// The page: which model, with which key, and the view of its kind.

import { askJson, key } from "./api.js";
import { byId, latest, newSeed, park, say, showFacts, showValue, stopAll } from "./dom.js";
import * as images from "./images.js";
import * as tables from "./tables.js";

const picker = byId("model");
const form = byId("sample-form");
const views = { image: images, vector: tables };
let model;

const showModel = latest(async (signal, reference) => {
  const chosen = { ...(await askJson(`models/${encodeURIComponent(reference)}`, { signal })), reference };
  await views[chosen.kind].show(chosen, signal);
  model = chosen;
  const { test } = model;
  document.title = `${reference} - Glow playground`;
  byId("description").textContent = model.description;
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
  sample();
}, { busy: "main" });

const sample = latest(async (signal) => {
  const { temperature, seed, n } = form.elements;
  const options = { n: Number(n.value), temperature: Number(temperature.value), seed: Number(seed.value) };
  const answer = await askJson("sample", { json: { model: model.reference, ...options }, signal });
  views[model.kind].showSamples(byId("sampled"), answer);
}, { busy: "sampled" });

const start = latest(async (signal) => {
  const { default: standard, models } = await askJson("models", { signal });
  const options = models.map(({ name, version, answers_for_name: bare }) =>
    Object.assign(new Option(bare ? name : `${name}@${version}`), { names: [bare && name, `${name}@${version}`] }));
  picker.replaceChildren(...options);
  const wanted = new URLSearchParams(location.search).get("model") ?? standard;
  const known = options.find(({ names }) => names.includes(wanted));
  picker.value = known?.value ?? standard;
  byId("key-form").hidden = !key.get();
  showModel(picker.value);
  if (!known) say(`This service has no model ${wanted}; below is ${picker.value}.`, picker);
});

picker.addEventListener("change", () => {
  history.replaceState(null, "", `?model=${encodeURIComponent(picker.value)}`);
  stopAll();
  showModel(picker.value);
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key").value);
  stopAll();
  start();
});
byId("key").value = key.get();
for (const kind of ["dragover", "drop"]) // else a browser leaves the page for a file that misses its place
  window.addEventListener(kind, (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
showValue(form.elements.temperature);
form.addEventListener("submit", (event) => (event.preventDefault(), sample()));
byId("new-seed").addEventListener("click", () => {
  form.elements.seed.value = newSeed();
  sample();
});
images.listen();
tables.listen();
start();
