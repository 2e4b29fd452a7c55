// Images: samples, one image in detail, ways between two, and directions away from one.

import { askArray, askJson } from "./api.js";
import { drawImage, drawMap } from "./charts.js";
import { Problem, byId, el, goTo, latest, number, onFile, percent, showValue } from "./dom.js";
import { add, interpolate, leadingDirections } from "./latent.js";
import { showResult } from "./results.js";

const STEPS = 33; // of an interpolation
const SHOWN_STEPS = 4; // every so many of them are shown in a row
const DIRECTIONS = 6;
const REACH = 6; // of a direction's slider, in standard deviations of the code
const PROBE = 0.5; // how far a coordinate is moved to see what it changes
const MOST_PROBES = 512; // coordinates that are tried
const CHUNK = 64; // codes of one request
const SCORED = "Scored image"; // its name among the ends of an interpolation

let model, examples, samples, image, code; // code: the image's latent code, once it is known
let frames = []; // of the interpolation
let directions = [], moved; // unit vectors in the latent space, and the image that they lead to
let cursor = { x: 0, y: 0 }; // of the keyboard, in pixels

const query = () => ({ model: model.reference });
const size = () => model.shape.reduce((a, b) => a * b);
const area = () => model.shape[1] * model.shape[2];
const draw = (canvas, pixels) => drawImage(canvas, pixels, model.shape, model.value_range);
/** What a route makes of flat rows, as flat rows. */
async function mapped(route, rows, signal) {
  const array = { shape: [rows.length, size()], data: Float32Array.from(rows.flatMap((row) => [...row])) };
  const { data } = await askArray(route, { query: query(), signal, array });
  return rows.map((_, i) => data.subarray(i * size(), (i + 1) * size()));
}
const encode = (pictures, signal) => mapped("encode", pictures, signal);
const decode = (codes, signal) => mapped("decode", codes, signal);

/** Whole pixel values in the model's range, as an image file would hold them. */
function asPixels(values) {
  const [low, high] = model.value_range;
  return Float32Array.from(values, (value) => Math.min(high, Math.max(low, Math.round(value))));
}

/** Show a model of images. Changes nothing before all that it needs is here. */
export async function show(chosen, signal) {
  const answer = await askJson(`models/${encodeURIComponent(chosen.reference)}/example`, { query: { n: 12 }, signal });
  model = chosen;
  samples = frames = [];
  const [channels, height, width] = model.shape;
  byId("size").textContent = `${width} x ${height} pixels`;
  byId("main").style.setProperty("--aspect", width / height);
  for (const [part, hidden] of [["color-only", channels !== 3], ["grey-only", channels === 3]])
    byId("image-view").querySelectorAll(`.${part}`).forEach((node) => (node.hidden = hidden));
  examples = answer.inputs.map((rows) => Float32Array.from(rows.flat(3)));
  showThumbs(byId("examples"), examples, (i) => `Example ${i + 1}`);
  setImage(examples[0]);
  offerEnds();
}

/** A row of images as buttons that choose one. */
function showThumbs(list, pictures, name, choose = setImage, title = name) {
  list.replaceChildren(...pictures.map((pixels, i) => {
    const canvas = el("canvas");
    draw(canvas, pixels);
    const button = { type: "button", onclick: () => choose(asPixels(pixels), i), title: title(i), ariaLabel: name(i) };
    return el("li", {}, el("button", button, canvas));
  }));
}

/** Show an answer of /sample. */
export function showSamples(container, answer) {
  samples = answer.samples.map((rows) => Float32Array.from(rows.flat(2)));
  const bits = (i) => `${number(-answer.log_likelihood[i] / (size() * Math.LN2))} bits per dimension`;
  const list = el("ul", { className: "thumbs grid", ariaLabel: "Samples" });
  showThumbs(list, samples, (i) => `Image ${i + 1}`, (pixels) => {
    setImage(pixels);
    goTo(byId("score-title"));
  }, bits);
  container.replaceChildren(list);
  offerEnds();
}

// The image to score.

function setImage(pixels) {
  image = Float32Array.from(pixels);
  imageChanged();
}

function imageChanged() {
  code = null;
  forgetDirections();
  showImage();
  score();
  if ([byId("from"), byId("to")].some((select) => select.value === SCORED)) interpolateNow();
}

function showImage() {
  const canvas = byId("drawing");
  draw(canvas, image);
  if (document.activeElement !== canvas || !canvas.matches(":focus-visible")) return;
  const context = canvas.getContext("2d");
  context.fillStyle = "#e8590c";
  context.fillRect(cursor.x, cursor.y, 1, 1);
}

const score = latest(async (signal) => {
  const pixels = image;
  const answer = await askJson("log-likelihood", { json: { model: model.reference, inputs: [[...pixels]], explain: true }, signal });
  showResult("image", answer, model, "image");
  showMap(answer.contributions[0]);
  [code] = await encode([pixels], signal);
  await reconstruct(pixels, signal);
}, { delay: 0.08, busy: "image-result" });

/** Brighter where -log-likelihood comes from, from the median of the pixels to nearly their highest. */
function showMap(rows) {
  const ordered = rows.flat().sort((a, b) => a - b);
  const at = (share) => ordered[Math.floor(share * (ordered.length - 1))];
  drawMap(byId("map"), rows, at(0.5), at(0.995));
  byId("map-scale").textContent = `${number(at(0.5))} (dark) to ${number(at(0.995))} nats a pixel (yellow)`;
}

/** Decode the image's code, and what of it is left with the finer levels at zero, their most likely value. */
async function reconstruct(pixels, signal) {
  const { offset } = model.latent_layout.at(-1);
  const coarse = code.map((value, i) => (i < offset ? 0 : value));
  byId("coarse-figure").hidden = offset === 0;
  const [whole, part] = await decode([code, coarse], signal);
  draw(byId("reconstruction"), whole);
  draw(byId("coarse"), part);
  const error = whole.reduce((most, value, i) => Math.max(most, Math.abs(value - pixels[i])), 0);
  byId("reconstruction-error").textContent = `no pixel is off by more than ${number(error)}`;
  byId("coarse-share").textContent = `${code.length - offset} of ${code.length} numbers, the others at 0`;
}

function paint(x, y) {
  const radius = byId("brush-size").value / 2;
  const [low, high] = model.value_range, [channels, height, width] = model.shape;
  const color = channels === 3
    ? byId("brush-color").value.match(/[0-9a-f]{2}/g).map((part) => parseInt(part, 16))
    : Array(channels).fill(Number(byId("brush-value").value));
  for (let row = Math.floor(y - radius); row <= y + radius; row++)
    for (let column = Math.floor(x - radius); column <= x + radius; column++) {
      const cover = Math.min(1, radius + 0.5 - Math.hypot(column + 0.5 - x, row + 0.5 - y));
      if (cover <= 0 || row < 0 || column < 0 || row >= height || column >= width) continue;
      color.forEach((value, c) => {
        const i = c * area() + row * width + column;
        image[i] = Math.round((1 - cover) * image[i] + cover * (low + (value / 255) * (high - low)));
      });
    }
}

/** Paint all the way between two points: a pointer may be far from where it was last seen. */
function stroke(from, to) {
  const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y)));
  for (let step = 1; step <= steps; step++)
    paint(from.x + ((to.x - from.x) * step) / steps, from.y + ((to.y - from.y) * step) / steps);
  imageChanged();
}

function listenToDrawing() {
  const canvas = byId("drawing");
  let last; // where the pointer was
  const strokeTo = (event) => {
    const box = canvas.getBoundingClientRect();
    const to = { x: ((event.clientX - box.left) / box.width) * canvas.width, y: ((event.clientY - box.top) / box.height) * canvas.height };
    stroke(last ?? to, to);
    last = to;
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    canvas.setPointerCapture(event.pointerId);
    strokeTo(event);
  });
  canvas.addEventListener("pointermove", (event) => last && event.isPrimary && strokeTo(event));
  canvas.addEventListener("lostpointercapture", () => (last = null));
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0] };
  canvas.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    cursor = { x: (cursor.x + move[0] + canvas.width) % canvas.width, y: (cursor.y + move[1] + canvas.height) % canvas.height };
    const center = { x: cursor.x + 0.5, y: cursor.y + 0.5 };
    if (event.key === " ") stroke(center, center);
    else showImage();
  });
  for (const kind of ["focus", "blur"]) canvas.addEventListener(kind, () => model && image && showImage());
}

const readFile = latest(async (signal, file) => {
  const [channels, height, width] = model.shape, [low, high] = model.value_range;
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => {
    throw new Problem(`${file.name} is not an image that this browser can read`);
  });
  signal.throwIfAborted();
  const side = Math.max(width / bitmap.width, height / bitmap.height); // fills the square; what stands out is cut off
  const context = Object.assign(el("canvas"), { width, height }).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, (width - side * bitmap.width) / 2, (height - side * bitmap.height) / 2, side * bitmap.width, side * bitmap.height);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const pixels = new Float32Array(channels * area());
  for (let i = 0; i < area(); i++) {
    const [red, green, blue] = data.subarray(4 * i);
    const parts = channels === 3 ? [red, green, blue] : Array(channels).fill(0.299 * red + 0.587 * green + 0.114 * blue);
    parts.forEach((value, c) => (pixels[c * area() + i] = low + (value / 255) * (high - low)));
  }
  setImage(asPixels(pixels));
}, { busy: "image-input" });

// Interpolation.

/** Images that an interpolation may begin or end with, by name. */
const ends = () => ({
  ...Object.fromEntries(examples.map((pixels, i) => [`Example ${i + 1}`, pixels])),
  ...Object.fromEntries(samples.map((pixels, i) => [`Sample ${i + 1}`, asPixels(pixels)])),
  [SCORED]: image,
});

function offerEnds() {
  const names = Object.keys(ends());
  [byId("from"), byId("to")].forEach((select, i) => {
    const chosen = select.value;
    select.replaceChildren(...names.map((name) => new Option(name)));
    select.value = names.includes(chosen) ? chosen : names[Math.min(i, names.length - 1)];
  });
  interpolateNow();
}

const interpolateNow = latest(async (signal) => {
  const [from, to] = [byId("from"), byId("to")].map((select) => ends()[select.value]);
  const codes = await encode([from, to], signal);
  const positions = Array.from({ length: STEPS }, (_, i) => i / (STEPS - 1));
  frames = await decode(positions.map((t) => interpolate(codes[0], codes[1], t)), signal);
  showThumbs(byId("frames"), frames.filter((_, i) => i % SHOWN_STEPS === 0),
    (i) => percent((i * SHOWN_STEPS) / (STEPS - 1)), (_, i) => chooseStep(i * SHOWN_STEPS));
  showFrame();
}, { delay: 0.15, busy: "interpolation" });

function chooseStep(step) {
  byId("position").value = step;
  byId("position").dispatchEvent(new Event("input"));
}

function showFrame() {
  const step = Number(byId("position").value);
  if (!frames[step]) return;
  draw(byId("frame"), frames[step]);
  byId("frame").ariaLabel = `Interpolated image, ${percent(step / (STEPS - 1))} of the way`;
}

// Directions.

const findDirections = latest(async (signal) => {
  code ??= (await encode([image], signal))[0];
  const { offset } = model.latent_layout.at(-1);
  const count = Math.min(code.length - offset, MOST_PROBES);
  const probes = Array.from({ length: count }, (_, i) => code.map((value, j) => value + (j === offset + i ? PROBE : 0)));
  const [origin] = await decode([code], signal);
  const changes = [];
  for (let i = 0; i < count; i += CHUNK) {
    const pictures = await decode(probes.slice(i, i + CHUNK), signal);
    changes.push(...pictures.map((pixels) => add(pixels, origin, -1)));
  }
  directions = leadingDirections(changes, DIRECTIONS).map((vector) => {
    const whole = new Float32Array(code.length);
    whole.set(vector, offset);
    return whole;
  });
  byId("directions").replaceChildren(...directions.map((_, k) => {
    const id = `direction-${k + 1}`;
    const range = el("input", { id, type: "range", min: -REACH, max: REACH, step: 0.1, value: 0, oninput: () => move() });
    const both = el("span", { className: "with-value" }, range, el("span", { ariaHidden: "true" }));
    showValue(range);
    return el("div", { className: "field" }, el("label", { htmlFor: id }, `Direction ${k + 1}`), both);
  }));
  showDirections(true);
}, { busy: "latent-directions" });

const move = latest(async (signal) => {
  const z = [...byId("directions").querySelectorAll("input")]
    .reduce((sum, range, k) => add(sum, directions[k], Number(range.value)), code);
  [moved] = await decode([z], signal);
  draw(byId("moved"), moved);
}, { delay: 0.03, busy: "latent-directions" });

function showDirections(shown) {
  for (const id of ["directions", "reset-directions", "use-moved"]) byId(id).hidden = !shown;
}

/** Those of another image lead nowhere from this one. */
function forgetDirections() {
  findDirections.stop();
  move.stop();
  showDirections(false);
  moved = image;
  draw(byId("moved"), moved);
}

/** Listen to what people do in this view. */
export function listen() {
  listenToDrawing();
  byId("clear").addEventListener("click", () => setImage(new Float32Array(image.length).fill(model.value_range[0])));
  byId("invert").addEventListener("click", () => setImage(image.map((value) => model.value_range[0] + model.value_range[1] - value)));
  onFile(byId("file"), byId("score"), readFile, () => byId("image-view").isConnected);
  showValue(byId("position"), (value) => percent(value / (STEPS - 1)));
  byId("position").addEventListener("input", showFrame);
  for (const id of ["from", "to"]) byId(id).addEventListener("change", () => interpolateNow());
  byId("use-frame").addEventListener("click", () => frames.length && setImage(asPixels(frames[byId("position").value])));
  byId("find-directions").addEventListener("click", () => findDirections());
  byId("reset-directions").addEventListener("click", () => {
    for (const range of byId("directions").querySelectorAll("input")) {
      range.value = 0;
      range.dispatchEvent(new Event("input"));
    }
  });
  byId("use-moved").addEventListener("click", () => setImage(asPixels(moved)));
}
