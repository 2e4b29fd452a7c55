// Tables: one row in a form, a file, and rows that the model makes up.

import { askJson } from "./api.js";
import { bar } from "./charts.js";
import * as csv from "./csv.js";
import { Problem, byId, el, goTo, latest, newSeed, number, onFile, save } from "./dom.js";
import { showResult } from "./results.js";

const CHUNK = 1024; // rows of one request
const SHOWN_ROWS = 100; // of a scored file
const LEAST_SPREAD = 3; // nats between contributions that a whole bar is worth

let model, examples, nextExample;
let file = null; // the scored one: what readTable returns

/** Show a model of tables. Changes nothing before all that it needs is here. */
export async function show(chosen, signal) {
  const answer = await askJson(`models/${encodeURIComponent(chosen.reference)}/example`, { query: { n: 100 }, signal });
  model = chosen;
  examples = answer.inputs;
  nextExample = 0;
  byId("level").value = model.calibration?.alpha ?? 0.05;
  for (const id of ["flag-by", "level"]) byId(id).parentElement.hidden = !model.calibration;
  forgetFile();
  byId("row-form").replaceChildren(...model.columns.map(field));
  showExample();
}

// One row.

function field({ name, type, categories }, j) {
  const id = `column-${j}`;
  const input = type === "categorical"
    ? el("select", { id }, ...categories.map((category, code) => new Option(category, code)))
    : el("input", { id, type: "number", step: type === "integer" ? 1 : "any", required: true });
  input.addEventListener("input", () => scoreRow());
  const contribution = el("div", { className: "contribution", id: `contribution-${j}` });
  input.setAttribute("aria-describedby", contribution.id);
  return el("div", { className: "field" }, el("label", { htmlFor: id }, name), input, contribution);
}

const inputs = () => [...byId("row-form").querySelectorAll("input, select")];

function setRow(values) {
  inputs().forEach((input, j) => (input.value = values[j]));
  scoreRow();
}

const showExample = () => setRow(examples[nextExample++ % examples.length]);

const scoreRow = latest(async (signal) => {
  const wrong = inputs().findIndex((input) => !input.checkValidity());
  if (wrong >= 0) {
    byId("row").classList.add("no-result");
    const verdict = byId("row-verdict");
    verdict.className = "verdict";
    verdict.textContent = `${model.columns[wrong].name}: ${inputs()[wrong].validationMessage}`;
    return;
  }
  const json = { model: model.reference, inputs: [inputs().map((input) => Number(input.value))], explain: true };
  const answer = await askJson("log-likelihood", { json, signal }).catch((error) => {
    if (error.status !== 413) throw error; // else it has too many columns for an explanation
    return askJson("log-likelihood", { json: { ...json, explain: false }, signal });
  });
  byId("row").classList.remove("no-result");
  showResult("row", answer, model, "row");
  const parts = answer.contributions?.[0] ?? [];
  byId("contributions").hidden = !parts.length;
  const least = Math.min(...parts), most = Math.max(...parts, least + LEAST_SPREAD);
  parts.forEach((nats, j) => byId(`contribution-${j}`).replaceChildren(bar((nats - least) / (most - least)), `${number(nats)} nats`));
}, { delay: 0.15, busy: "row-result" });

const randomRow = latest(async (signal) => {
  const seed = newSeed();
  const answer = await askJson("sample", { json: { model: model.reference, n: 1, seed }, signal });
  setRow(answer.samples[0].map(asCell));
});

/** A sampled value as it would stand in data: whole where the column holds whole numbers, else of six digits. */
function asCell(value, j) {
  const { type, categories } = model.columns[j];
  if (type === "categorical") return Math.min(categories.length - 1, Math.max(0, Math.round(value)));
  return type === "integer" ? Math.round(value) : Number(value.toPrecision(6));
}

const shown = (value, j) => model.columns[j].categories[value] ?? number(value);

// Sampled rows.

/** Show an answer of /sample. */
export function showSamples(container, answer) {
  const rows = answer.samples.map((row) => row.map(asCell));
  const table = el("table", {}, el("caption", { id: "sampled-caption" }, "Sampled rows"));
  fill(table, ["Row", "log-likelihood", ...model.columns.map(({ name }) => name)], rows.map((row, i) => ({
    cells: [scoreButton(i, row), number(answer.log_likelihood[i]), ...row.map(shown)],
  })));
  const region = el("div", { className: "scroll", tabIndex: 0, role: "region" }, table);
  region.setAttribute("aria-labelledby", "sampled-caption");
  container.replaceChildren(region);
}

function scoreButton(i, row) {
  const button = el("button", { type: "button", className: "quiet", title: "Look into it above", ariaLabel: `Row ${i + 1}` }, i + 1);
  button.addEventListener("click", () => {
    setRow(row);
    goTo(byId("row-title"));
  });
  return button;
}

function fill(table, header, rows) {
  table.replaceChildren(
    table.caption,
    el("thead", {}, el("tr", {}, ...header.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows.map(({ cells, flagged }) =>
      el("tr", { className: flagged ? "flagged" : "" }, ...cells.map((cell) => el("td", {}, cell))))));
}

// A file.

function forgetFile() {
  file = null;
  for (const id of ["csv-result", "csv-rejected", "csv-progress"]) byId(id).hidden = true;
  byId("csv-summary").replaceChildren();
}

const scoreFile = latest(async (signal, chosen) => {
  forgetFile();
  byId("csv-progress").hidden = false;
  byId("progress").removeAttribute("value");
  try {
    const content = await chosen.arrayBuffer();
    signal.throwIfAborted();
    const scored = readTable(chosen.name, csv.decode(content));
    byId("progress").max = scored.rows.length;
    for (let start = 0; start < scored.rows.length; start += CHUNK) {
      byId("progress").value = start;
      await scoreRows(scored, readRows(scored, start, start + CHUNK), signal);
    }
    file = scored;
  } finally {
    if (!signal.aborted) byId("csv-progress").hidden = true;
  }
  showFile();
});

/** Read a file's text, and find the model's columns in it. Throws Problem. */
function readTable(name, text) {
  try {
    const { header, rows, toNumber } = csv.parse(text);
    const names = model.columns.map((column) => column.name);
    const some = (list) => list.slice(0, 5).join(", ") + (list.length > 5 ? `, and ${list.length - 5} more` : "");
    const missing = names.filter((column) => !header.includes(column));
    if (missing.length) throw new Problem(`columns are missing that the model needs: ${some(missing)}`);
    const twice = names.filter((column) => header.indexOf(column) !== header.lastIndexOf(column));
    if (twice.length) throw new Problem(`columns that the model needs are there twice: ${some(twice)}`);
    const places = names.map((column) => header.indexOf(column));
    return { name, header, rows, toNumber, places, inputs: [], results: [], rejected: [] };
  } catch (error) {
    error.message = `${name}: ${error.message}`;
    throw error;
  }
}

/** Read the rows of a file from `start` to before `end`, and return the places of those that are whole. */
function readRows({ header, rows, toNumber, places, inputs, rejected }, start, end) {
  rows.slice(start, end).forEach((row, i) => {
    try {
      if (row.slice(header.length).some(Boolean)) throw new Problem(`has ${row.length} cells, the header ${header.length}`);
      inputs[start + i] = model.columns.map((column, j) => readCell(row[places[j]] ?? "", column, toNumber));
    } catch (error) {
      rejected[start + i] = error.message;
    }
  });
  return Object.keys(inputs.slice(start, end)).map((i) => start + Number(i));
}

/** The number that a cell stands for, read by `toNumber`: of a category its code. Throws Error. */
function readCell(cell, { name, type, categories }, toNumber) {
  const value = type === "categorical" && categories.includes(cell) ? categories.indexOf(cell) : cell ? toNumber(cell) : NaN;
  if (type === "categorical" && !(Number.isInteger(value) && value >= 0 && value < categories.length))
    throw new Problem(cell ? `${name}: "${cell}" is none of ${categories.slice(0, 8).join(", ")}` : `${name} is missing`);
  if (!Number.isFinite(value)) throw new Problem(cell ? `${name}: "${cell}" is not a number` : `${name} is missing`);
  return value;
}

/** Score rows by their places. Where the service refuses some, those are found by halving. */
async function scoreRows(scored, places, signal) {
  if (!places.length) return;
  try {
    const rows = places.map((i) => scored.inputs[i]);
    const answer = await askJson("log-likelihood", { json: { model: model.reference, inputs: rows }, signal });
    places.forEach((i, k) => {
      scored.results[i] = { logLikelihood: answer.log_likelihood[k], score: answer.score?.[k], p: answer.p_value?.[k] };
    });
  } catch (error) {
    if (![400, 413, 422].includes(error.status)) throw error;
    if (places.length === 1) {
      scored.rejected[places[0]] = error.message;
      return;
    }
    const half = Math.ceil(places.length / 2);
    await scoreRows(scored, places.slice(0, half), signal);
    await scoreRows(scored, places.slice(half), signal);
  }
}

/** The p-value up to which rows are flagged: alpha, or what Benjamini and Hochberg (1995) make of a false discovery rate. */
function threshold() {
  const level = Number(byId("level").value);
  if (byId("flag-by").value === "alpha") return level;
  const ordered = Object.values(file.results).map(({ p }) => p).sort((a, b) => a - b);
  return ordered.findLast((p, k) => p <= (level * (k + 1)) / ordered.length) ?? -1;
}

function showFile() {
  if (!file || !byId("level").checkValidity()) return;
  const calibrated = Boolean(model.calibration), limit = threshold();
  const places = Object.keys(file.results).map(Number);
  const badness = (i) => file.results[i].score ?? -file.results[i].logLikelihood;
  places.forEach((i) => (file.results[i].flagged = calibrated && file.results[i].p <= limit));
  places.sort((a, b) => badness(b) - badness(a));
  const flagged = places.filter((i) => file.results[i].flagged).length;
  const rejected = Object.entries(file.rejected);
  byId("csv-summary").textContent = `${file.name}: ${places.length} rows scored` +
    (calibrated ? `, ${flagged} flagged` : "") + (rejected.length ? `, ${rejected.length} refused` : "") +
    (places.length > SHOWN_ROWS ? `. The ${SHOWN_ROWS} worst:` : places.length ? ". Worst first:" : ".");
  fill(byId("csv-table"), ["Row", ...(calibrated ? ["p-value", "score", "flagged"] : []), "log-likelihood", ...file.header],
    places.slice(0, SHOWN_ROWS).map((i) => {
      const { p, score, logLikelihood, flagged } = file.results[i];
      const figures = calibrated ? [number(p), number(score), flagged ? "yes" : "no"] : [];
      return { flagged, cells: [scoreButton(i, file.inputs[i]), ...figures, number(logLikelihood), ...file.rows[i]] };
    }));
  byId("csv-result").hidden = !places.length;
  const list = byId("csv-rejected");
  list.hidden = !rejected.length;
  list.querySelector("summary").textContent = `Rows that the model does not take (${rejected.length})`;
  list.querySelector("ul").replaceChildren(...rejected.slice(0, SHOWN_ROWS).map(([i, why]) => el("li", {}, `Row ${Number(i) + 1}: ${why}`)));
}

/** Save all rows in their order, with scores or with the reason why there are none. */
function download() {
  const calibrated = Boolean(model.calibration);
  const added = ["log_likelihood", ...(calibrated ? ["score", "p_value", "is_anomaly"] : []), ...(file.rejected.length ? ["error"] : [])];
  const lines = file.rows.map((row, i) => {
    const { logLikelihood = "", score = "", p = "", flagged = "" } = file.results[i] ?? {};
    return [...row, logLikelihood, ...(calibrated ? [score, p, flagged] : []), ...(file.rejected.length ? [file.rejected[i] ?? ""] : [])];
  });
  save(file.name.replace(/\.\w+$/, "") + "-scored.csv", csv.write([[...file.header, ...added], ...lines]), "text/csv");
}

/** Save rows that the model takes, to begin with: its examples, and samples. */
const downloadExample = latest(async (signal) => {
  const answer = await askJson("sample", { json: { model: model.reference, n: 50, seed: 1 }, signal });
  const rows = [...examples, ...answer.samples.map((row) => row.map(asCell))];
  const lines = rows.map((row) => row.map((value, j) => model.columns[j].categories[value] ?? value));
  save(`${model.name}-example.csv`, csv.write([model.columns.map(({ name }) => name), ...lines]), "text/csv");
});

/** Listen to what people do in this view. */
export function listen() {
  byId("row-form").addEventListener("submit", (event) => event.preventDefault());
  byId("next-example").addEventListener("click", showExample);
  byId("random-row").addEventListener("click", () => randomRow());
  onFile(byId("csv"), byId("csv-drop"), scoreFile);
  byId("stop").addEventListener("click", () => {
    scoreFile.stop();
    forgetFile();
    byId("csv-summary").textContent = "Stopped. No row was kept.";
  });
  byId("download").addEventListener("click", download);
  byId("example-csv").addEventListener("click", () => downloadExample());
  for (const id of ["flag-by", "level"]) byId(id).addEventListener("input", showFile);
}
