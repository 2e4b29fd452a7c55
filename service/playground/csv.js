// Comma-separated values (RFC 4180), and what spreadsheets make of them: semicolons, tabs, decimal commas.

/** Read a text to {header, rows} of strings. Throws Error where it has no header or no rows. */
export function parse(text) {
  text = text.replace(/^\ufeff/, "");
  const first = text.slice(0, text.search(/\r?\n|$/));
  const delimiter = [",", ";", "\t"].reduce((best, one) => (first.split(one).length > first.split(best).length ? one : best));
  const rows = records(text, delimiter).filter((row) => row.length > 1 || row[0].trim());
  if (rows.length < 2) throw new Error("The file has no rows: a line with the names of columns is needed, and rows after it");
  const [header, ...others] = rows.map((row) => row.map((cell) => cell.trim()));
  const decimal = delimiter === ";" ? (cell) => cell.replace(/^(-?\d+),(\d+)$/, "$1.$2") : (cell) => cell;
  return { header, rows: others.map((row) => row.map(decimal)) };
}

function records(text, delimiter) {
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
    else if (sign !== "\r") cell += sign;
  }
  if (row.length || cell) rows.push([...row, cell]);
  return rows;
}

/** Write rows of cells, a cell in quotes where it needs them. */
export const write = (rows) =>
  rows.map((row) => row.map((cell) => (/[",\r\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell)).join(",")).join("\n") + "\n";
