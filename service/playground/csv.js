// Comma-separated values (RFC 4180), and what spreadsheets make of them: semicolons, tabs, decimal commas, other encodings.

import { Problem } from "./dom.js";

const DELIMITERS = [",", ";", "\t"];
const DECIMAL_COMMA = /^([+-]?\d*),(\d+(?:e[+-]?\d+)?)$/i;

/** The text of a file: UTF-8 or UTF-16 as its mark says, else UTF-8, else what Windows writes in the West. */
export function decode(buffer) {
  const [first, second] = new Uint8Array(buffer);
  if (first === 0xff && second === 0xfe) return new TextDecoder("utf-16le").decode(buffer);
  if (first === 0xfe && second === 0xff) return new TextDecoder("utf-16be").decode(buffer);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(buffer);
  } catch {
    return new TextDecoder("windows-1252").decode(buffer);
  }
}

/** Read a text to {header, rows} of strings, and `toNumber`, which reads one as the text writes numbers. Throws Problem where it has no header, no rows or an open quote. */
export function parse(text) {
  text = text.replace(/\r\n?/g, "\n");
  const line = text.split("\n", 1)[0].replace(/"[^"]*"/g, ""); // what is in quotes separates nothing
  const delimiter = DELIMITERS.reduce((best, one) => (line.split(one).length > line.split(best).length ? one : best));
  const [header, ...rows] = records(text, delimiter).filter((row) => row.length > 1 || row[0].trim());
  if (!rows.length) throw new Problem("The file has no rows: a line with the names of columns is needed, and rows after it");
  const toNumber = delimiter === "," ? Number : (cell) => Number(cell.replace(DECIMAL_COMMA, "$1.$2"));
  return { header: header.map((cell) => cell.trim()), rows: rows.map((row) => row.map((cell) => cell.trim())), toNumber };
}

function records(text, delimiter) {
  if (!text.includes('"')) return text.split("\n").map((line) => line.split(delimiter)); // many times faster
  const rows = [];
  let row = [], cell = "", quoted = false;
  for (let i = 0; i < text.length; i++) {
    const sign = text[i];
    if (quoted) {
      if (sign !== '"') cell += sign;
      else if (text[i + 1] === '"') cell += text[++i];
      else quoted = false;
    } else if (sign === '"' && cell === "") quoted = true;
    else if (sign === delimiter) (row.push(cell), (cell = ""));
    else if (sign === "\n") (rows.push([...row, cell]), (row = []), (cell = ""));
    else cell += sign;
  }
  if (quoted) throw new Problem(`A quote is opened in row ${rows.length} and not closed`);
  return [...rows, [...row, cell]];
}

/** Write rows of cells, a cell in quotes where it needs them. */
export const write = (rows) =>
  rows.map((row) => row.map((cell) => (/[",\r\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell)).join(",")).join("\n") + "\n";
