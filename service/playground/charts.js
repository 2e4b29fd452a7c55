// Pictures of numbers: histograms, pixels, maps.

import { number, svg } from "./dom.js";

const LEAST_WIDTH = 240, MOST_WIDTH = 576, HEIGHT = 134, TOP = 30, BOTTOM = 18;

/** Draw the calibration scores of a model, its threshold, and where `score` falls. */
export function histogram(container, { histogram: { edges, counts }, threshold, rows }, score, what) {
  const low = edges[0], high = Math.max(edges.at(-1), threshold), width = high - low || 1;
  const wide = Math.min(MOST_WIDTH, Math.max(LEAST_WIDTH, container.clientWidth)); // so that text keeps its size
  const x = (value) => 8 + (wide - 16) * Math.min(1, Math.max(0, (value - low) / width));
  const y = (count) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - count / Math.max(...counts));
  const bars = counts.map((count, i) =>
    svg("rect", {
      class: edges[i] >= threshold ? "bar beyond" : "bar",
      x: x(edges[i]), width: Math.max(0, x(edges[i + 1]) - x(edges[i]) - 0.7),
      y: count ? Math.min(y(count), HEIGHT - BOTTOM - 1.5) : HEIGHT - BOTTOM, height: count ? Math.max(1.5, HEIGHT - BOTTOM - y(count)) : 0,
    }));
  const line = (kind, value, from) => svg("line", { class: kind, x1: x(value), x2: x(value), y1: from, y2: HEIGHT - BOTTOM });
  const text = (value, where, top, anchor) => svg("text", { x: where, y: top, "text-anchor": anchor }, value);
  const side = (value) => (x(value) > wide / 2 ? "end" : "start");
  const label = `${score < low ? "\u2190 " : ""}${what} ${number(score)}${score > high ? " \u2192" : ""}`; // drawn at an end
  container.replaceChildren(svg("svg", { viewBox: `0 0 ${wide} ${HEIGHT}`, role: "img" },
  svg("title", {}, `Histogram of the scores of ${rows} held-out normal inputs, between ${number(low)} and ${number(high)}. ` +
    `Above ${number(threshold)} they are anomalies. The score of ${what} is ${number(score)}.`),
  ...bars,
  svg("line", { class: "axis", x1: 8, x2: wide - 8, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
  line("threshold", threshold, TOP), line("marker", score, 15),
  text(label, x(score), 11, side(score)),
  text(number(low), 8, HEIGHT - 4, "start"), text(number(high), wide - 8, HEIGHT - 4, "end"),
  text(`threshold ${number(threshold)}`, x(threshold), 26, side(threshold))));
}

/** Draw a bar of `share`, between 0 and 1. */
export function bar(share) {
  return svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", width: 100, height: 8 }),
    svg("rect", { class: "share", width: 100 * share, height: 8 }));
}

/** Draw pixels (C, H, W), grey or RGB, on a canvas of their size. */
export function drawImage(canvas, pixels, [channels, height, width], [low, high]) {
  const area = height * width, scale = 255 / (high - low);
  drawRgb(canvas, height, width, (i) => [0, 1, 2].map((c) => (pixels[(channels === 3 ? c : 0) * area + i] - low) * scale));
}

// Viridis, in steps; perceptually uniform, and readable without colour vision.
const COLORS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

/** Draw values (H, W) as colours, from `low` to `high`. */
export function drawMap(canvas, rows, low, high) {
  const values = rows.flat();
  drawRgb(canvas, rows.length, rows[0].length, (i) => {
    const place = Math.min(1, Math.max(0, (values[i] - low) / (high - low || 1))) * (COLORS.length - 1);
    const step = Math.min(COLORS.length - 2, Math.floor(place));
    return COLORS[step].map((from, c) => from + (place - step) * (COLORS[step + 1][c] - from));
  });
}

function drawRgb(canvas, height, width, rgb) {
  Object.assign(canvas, { height, width });
  const picture = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) picture.data.set([...rgb(i), 255], 4 * i);
  canvas.getContext("2d").putImageData(picture, 0, 0);
}
