// Arrays in NumPy's file format, version 1.0, in C order and little-endian:
// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

const TYPES = { "<f4": Float32Array, "<f8": Float64Array };

/** Write {shape, data} of a Float32Array or a Float64Array. */
export function write({ shape, data }) {
  const type = Object.keys(TYPES).find((name) => data instanceof TYPES[name]);
  const about = `{'descr': '${type}', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  const length = Math.ceil((about.length + 11) / 64) * 64 - 10; // so that the data begins at a multiple of 64
  return new Blob([Uint8Array.of(0x93), "NUMPY\x01\x00", Uint16Array.of(length), about.padEnd(length - 1), "\n", data]);
}

/** Read {shape, data} of floats. Throws SyntaxError for what is no such file. */
export function read(buffer) {
  if (buffer.byteLength < 10 || new Uint8Array(buffer)[0] !== 0x93) throw new SyntaxError("this is no array");
  const length = new DataView(buffer).getUint16(8, true);
  const about = new TextDecoder().decode(new Uint8Array(buffer, 10, length));
  const type = TYPES[/'descr': '([^']+)'/.exec(about)[1]];
  const shape = /'shape': \(([^)]*)\)/.exec(about)[1].split(",").filter((size) => size.trim()).map(Number);
  return { shape, data: new type(buffer, 10 + length) };
}
